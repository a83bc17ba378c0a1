//! Accounts: founding, chain, slot, and who may log in.
//!
//! Invariant: the chain decides; the server adds no right of its own. An unknown account and an unknown device are told
//! alike. Called through [`Book`].

use bytes::{BufMut as _, Bytes, BytesMut};
use ed25519_dalek::VerifyingKey;
use sealdrive_proto::fields::Fields;
use sealdrive_proto::id::{AccountId, DeviceId, DomainId, DriveId};
use sealdrive_proto::limits::{MAX_KEY_BOX, MAX_LINKS, MAX_SLOT};
use sealdrive_proto::link::{AccountChain, LinkBody, Signer};
use sealdrive_proto::transcript::{Call, Caller, Role};

use super::{Account, Book, BookError, Drive, Record, RecordKind, State, link_of, numbered};

/// A slot record before it is written: `generation u64 ‖ device16 ‖ call_seq u64 ‖ slot_len u32 ‖ slot ‖ key box`.
fn slot_record(
    account: &AccountId,
    generation: u64,
    by: (&DeviceId, u64),
    slot: &[u8],
    key_box: &[u8],
) -> Result<Record, BookError> {
    if slot.len() > MAX_SLOT || key_box.len() > MAX_KEY_BOX {
        return Err(BookError::Malformed("slot or key box is too long"));
    }
    let mut payload = BytesMut::with_capacity(36 + slot.len() + key_box.len());
    payload.put_u64_le(generation);
    payload.put_slice(by.0.as_bytes());
    payload.put_u64_le(by.1);
    payload.put_u32_le(slot.len() as u32);
    payload.put_slice(slot);
    payload.put_slice(key_box);
    Ok(Record {
        kind: RecordKind::Slot,
        owner: account.0,
        id: [0; 32],
        payload: payload.freeze(),
    })
}

impl Book {
    /// A new account: its genesis and its slot, to be made durable together. `None` if it exists already with the
    /// same genesis (a repeated call after a lost answer).
    pub fn propose_account(
        &self,
        genesis: &[u8],
        slot: &[u8],
        key_box: &[u8],
    ) -> Result<Option<[Record; 2]>, BookError> {
        let link = link_of(genesis)?;
        let chain = AccountChain::found(&link)?;
        let account = chain.account();
        if self.lock().accounts.contains_key(&account) {
            return Ok(None);
        }
        let first = chain.genesis().device.id();
        let slot = slot_record(&account, 1, (&first, 0), slot, key_box)?;
        let genesis = Bytes::copy_from_slice(genesis);
        let record = Record {
            kind: RecordKind::Link,
            owner: account.0,
            id: numbered(0),
            payload: genesis,
        };
        Ok(Some([record, slot]))
    }

    /// The next link of a chain. `None` if that very link stands there already. With the slot-fetch key only a link
    /// signed by the enrol key may come, which can do nothing but add a device.
    pub fn propose_link(
        &self,
        account: &AccountId,
        role: Role,
        bytes: &[u8],
    ) -> Result<Option<Record>, BookError> {
        let link = link_of(bytes)?;
        let state = self.lock();
        let found = state.accounts.get(account).ok_or(BookError::NotFound)?;
        let fields = link.fields();
        if role == Role::SlotFetch
            && !(fields.signer == Signer::Enrol
                && matches!(fields.body, LinkBody::AddDevice { .. }))
        {
            return Err(BookError::NotFound);
        }
        let stands = usize::try_from(fields.seq)
            .ok()
            .and_then(|seq| found.links.get(seq));
        if stands.is_some_and(|link| link == bytes) {
            return Ok(None);
        }
        found.chain.clone().append(&link)?;
        let payload = Bytes::copy_from_slice(bytes);
        Ok(Some(Record {
            kind: RecordKind::Link,
            owner: account.0,
            id: numbered(fields.seq),
            payload,
        }))
    }

    /// A new slot, one generation on.
    pub fn propose_slot(
        &self,
        account: &AccountId,
        device: &DeviceId,
        call: &Call<'_>,
        call_seq: u64,
        signature: &[u8],
    ) -> Result<Record, BookError> {
        let Call::PutSlot {
            slot,
            key_box,
            slot_generation,
        } = call
        else {
            return Err(BookError::Malformed("not a slot call"));
        };
        let state = self.lock();
        state.check_call(self.server_pk, account, device, call, call_seq, signature)?;
        let found = state.accounts.get(account).ok_or(BookError::NotFound)?;
        if found.slot_generation.checked_add(1) != Some(*slot_generation) {
            return Err(BookError::Stale(
                "the slot has another generation; fetch it and try again",
            ));
        }
        slot_record(account, *slot_generation, (device, call_seq), slot, key_box)
    }

    /// The key that may log in under this role, if there is one.
    pub fn login_key(
        &self,
        account: &AccountId,
        role: Role,
        device: &DeviceId,
    ) -> Option<VerifyingKey> {
        let state = self.lock();
        let chain = &state.accounts.get(account)?.chain;
        match role {
            Role::Device => chain.active_device(device).map(|device| device.keys.sign),
            Role::SlotFetch => Some(chain.genesis().slot_fetch),
        }
    }

    /// Slot and key box.
    pub fn slot(&self, account: &AccountId) -> Result<(Bytes, Bytes), BookError> {
        let state = self.lock();
        let found = state.accounts.get(account).ok_or(BookError::NotFound)?;
        Ok((found.slot.clone(), found.key_box.clone()))
    }

    /// Links from `from` on, at most `MAX_LINKS`, and the number of the newest.
    pub fn links(&self, account: &AccountId, from: u64) -> Result<(Vec<Bytes>, u64), BookError> {
        let state = self.lock();
        let found = state.accounts.get(account).ok_or(BookError::NotFound)?;
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let links = found
            .links
            .iter()
            .skip(from)
            .take(MAX_LINKS)
            .cloned()
            .collect();
        Ok((links, found.chain.head_seq()))
    }

    /// Whether this domain is the account's own.
    pub fn owns_domain(&self, account: &AccountId, domain: &DomainId) -> bool {
        account.private_domain() == *domain && self.lock().accounts.contains_key(account)
    }
}

impl State {
    /// A signed call holds if its device is active, its number rose and its signature is over these very fields.
    pub(super) fn check_call(
        &self,
        server_pk: [u8; 32],
        account: &AccountId,
        device: &DeviceId,
        call: &Call<'_>,
        call_seq: u64,
        signature: &[u8],
    ) -> Result<(), BookError> {
        let found = self.accounts.get(account).ok_or(BookError::NotFound)?;
        let key = found
            .chain
            .active_device(device)
            .ok_or(BookError::NotFound)?
            .keys
            .sign;
        if found
            .calls
            .get(device)
            .is_some_and(|last| call_seq <= *last)
        {
            return Err(BookError::Proof);
        }
        let caller = Caller {
            server_pk,
            account: *account,
            device: *device,
            call_seq,
        };
        call.verify(&caller, &key, signature)
            .map_err(|_| BookError::Proof)
    }

    pub(super) fn count_call(&mut self, account: &AccountId, device: DeviceId, call_seq: u64) {
        if let Some(found) = self.accounts.get_mut(account) {
            let last = found.calls.entry(device).or_default();
            *last = call_seq.max(*last);
        }
    }

    pub(super) fn apply_link(&mut self, record: &Record) -> Result<(), BookError> {
        let link = link_of(&record.payload)?;
        let account = AccountId(record.owner);
        if link.fields().seq == 0 {
            let chain = AccountChain::found(&link)?;
            if chain.account() != account {
                return Err(BookError::Damaged("genesis under another account"));
            }
            self.accounts.entry(account).or_insert_with(|| Account {
                chain,
                links: vec![record.payload.clone()],
                slot: Bytes::new(),
                key_box: Bytes::new(),
                slot_generation: 0,
                calls: Default::default(),
            });
            return Ok(());
        }
        let found = self.accounts.get_mut(&account).ok_or(BookError::NotFound)?;
        found.chain.append(&link)?;
        found.links.push(record.payload.clone());
        if matches!(link.fields().body, LinkBody::CreateDrive { .. }) {
            self.drives
                .entry(DriveId::of(&link))
                .or_insert_with(|| Drive::new(account));
        }
        Ok(())
    }

    pub(super) fn apply_slot(&mut self, record: &Record) -> Result<(), BookError> {
        let mut fields = Fields::new(&record.payload);
        let generation = fields.u64()?;
        let device = DeviceId(fields.array()?);
        let call_seq = fields.u64()?;
        let slot_len = fields.u32()? as usize;
        let rest = record.payload.slice(36..);
        if slot_len > rest.len() {
            return Err(BookError::Damaged("slot record is cut off"));
        }
        let account = AccountId(record.owner);
        let found = self.accounts.get_mut(&account).ok_or(BookError::NotFound)?;
        if generation > found.slot_generation {
            found.slot_generation = generation;
            found.slot = rest.slice(..slot_len);
            found.key_box = rest.slice(slot_len..);
        }
        self.count_call(&account, device, call_seq);
        Ok(())
    }
}
