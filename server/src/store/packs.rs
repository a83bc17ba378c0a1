//! Pack files open for reading, by number.
//!
//! Invariant: at most `OPEN_PACKS` files are open; a reader stays usable while somebody holds it, also when the pack is
//! closed here. Called by the store.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use sealdrive_pack::{Found, Location, Medium, PackError, Reader, file_name};
use sealdrive_runtime::sync::{Mutex, MutexGuard};

use crate::limits::OPEN_PACKS;

pub(super) struct Packs {
    medium: Arc<dyn Medium>,
    /// The store's secret id, which every pack must carry.
    store: [u8; 32],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: BTreeMap<u64, (u64, Reader)>,
    /// Counts uses: the smallest number is the pack used longest ago.
    uses: u64,
}

impl Packs {
    pub(super) fn new(medium: Arc<dyn Medium>, store: [u8; 32]) -> Self {
        Self {
            medium,
            store,
            state: Mutex::default(),
        }
    }

    pub(super) fn medium(&self) -> &dyn Medium {
        &*self.medium
    }

    pub(super) fn store(&self) -> [u8; 32] {
        self.store
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in the pack being written.
    pub(super) fn add(&self, id: u64, reader: Reader) {
        self.lock().keep(id, reader);
    }

    pub(super) fn read(&self, id: u64, location: Location) -> Result<Found, PackError> {
        self.reader(id)?.read(location)
    }

    fn reader(&self, id: u64) -> Result<Reader, PackError> {
        let mut state = self.lock();
        state.uses += 1;
        let uses = state.uses;
        if let Some((used, reader)) = state.open.get_mut(&id) {
            *used = uses;
            return Ok(reader.clone());
        }
        drop(state);
        let reader = match Reader::open(self.medium(), &file_name(id)) {
            // Its own header is damaged: each record is checked with the store's key all the same.
            Err(PackError::Format) => Reader::open_as(self.medium(), id, self.store)?,
            reader => reader?,
        };
        if reader.header().store != self.store || reader.header().id != id {
            return Err(PackError::Format);
        }
        self.lock().keep(id, reader.clone());
        Ok(reader)
    }
}

impl State {
    fn keep(&mut self, id: u64, reader: Reader) {
        self.uses += 1;
        self.open.insert(id, (self.uses, reader));
        if self.open.len() > OPEN_PACKS
            && let Some(oldest) = self
                .open
                .iter()
                .min_by_key(|(_, (used, _))| *used)
                .map(|(id, _)| *id)
        {
            self.open.remove(&oldest);
        }
    }
}
