//! Sleeping and deadlines of tasks.
//!
//! Invariant: a timer that is dropped before its time leaves nothing behind. Called through `time.rs`.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use super::scheduler::{Me, current};

/// The time was up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

impl std::fmt::Display for Elapsed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("deadline has elapsed")
    }
}

impl std::error::Error for Elapsed {}

struct Sleep {
    me: Me,
    deadline: Duration,
    timer: Option<(Duration, u64)>,
}

impl Sleep {
    fn new(me: Me, time: Duration) -> Self {
        let deadline = me.deadline(time);
        Self {
            me,
            deadline,
            timer: None,
        }
    }

    fn cancel(&mut self) {
        if let Some(timer) = self.timer.take() {
            self.me.scheduler.lock().timers.remove(&timer);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.cancel();
        if self.me.elapsed() >= self.deadline {
            return Poll::Ready(());
        }
        let timer = self.me.set_alarm(self.deadline, cx.waker().clone());
        self.timer = Some(timer);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// Waits for `time`.
pub async fn sleep(time: Duration) {
    match current() {
        Some(me) => Sleep::new(me, time).await,
        None => tokio::time::sleep(time).await,
    }
}

/// The future's output, unless `at_most` passes first.
pub async fn timeout<F: Future>(at_most: Duration, future: F) -> Result<F::Output, Elapsed> {
    let Some(me) = current() else {
        return tokio::time::timeout(at_most, future)
            .await
            .map_err(|_| Elapsed);
    };
    let mut future = pin!(future);
    let mut sleep = pin!(Sleep::new(me, at_most));
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        sleep.as_mut().poll(cx).map(|()| Err(Elapsed))
    })
    .await
}
