//! Progress of waiting for the server: a bar on a terminal, a line every few seconds otherwise, JSON when asked.
//!
//! Invariant: only ever writes to stderr (or JSON lines to stdout), and leaves the terminal as it was.
//! Called by `sync` and `umount`.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::output::size;
use crate::control::Progress;

/// Time between lines when not on a terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Bar,
    Lines,
    Json,
    None,
}

/// One thing being waited for.
pub(super) struct Meter {
    style: Style,
    what: String,
    bar: Option<ProgressBar>,
    /// The most ever pending: what "all of it" means while more is being written.
    total: u64,
    last_line: Option<Instant>,
}

impl Meter {
    pub(super) fn new(style: Style, what: &str) -> Self {
        let bar = (style == Style::Bar).then(|| {
            let bar = ProgressBar::new(0);
            let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_message(what.to_owned());
            bar
        });
        Self {
            style,
            what: what.to_owned(),
            bar,
            total: 0,
            last_line: None,
        }
    }

    /// Shows how far it is. `now` is the monotonic time.
    pub(super) fn show(&mut self, progress: &Progress, now: Instant) {
        self.total = self.total.max(progress.pending_bytes);
        if let Some(bar) = &self.bar {
            bar.set_length(self.total);
            bar.set_position(self.total - progress.pending_bytes);
            let offline = if progress.online {
                ""
            } else {
                " (server unreachable, trying)"
            };
            bar.set_message(format!("{}{offline}", self.what));
        }
        let due = self
            .last_line
            .is_none_or(|last| now.duration_since(last) >= LINE_EVERY);
        match self.style {
            Style::Lines if due => eprintln!(
                "{}: {} in {} objects to go{}",
                self.what,
                size(progress.pending_bytes),
                progress.pending_objects,
                if progress.online {
                    ""
                } else {
                    ", server unreachable"
                }
            ),
            Style::Json if due => {
                if let Ok(line) =
                    serde_json::to_string(&crate::control::Answer::Progress(progress.clone()))
                {
                    println!("{line}");
                }
            }
            _ => return,
        }
        self.last_line = Some(now);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
