//! A TCP proxy between client and server that records every byte and can misbehave on command.
//!
//! Invariant: what is recorded is exactly what went over the wire, in both directions. Called by the canary and
//! outage suites. Plain threads: two a connection, and none of it is timed.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// How the proxy treats bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Weather {
    /// Everything passes.
    Clear = 0,
    /// Connections are accepted and nothing ever comes back: the hardest failure to notice.
    BlackHole = 1,
    /// Connections are cut at once.
    Refuse = 2,
    /// Everything passes, at `SLOW_BYTES` a `SLOW_PAUSE` and direction.
    Slow = 3,
}

/// What passes in slow weather, bytes, before the next pause.
const SLOW_BYTES: usize = 16 << 10;
/// That pause: together about 160 KB/s.
const SLOW_PAUSE: Duration = Duration::from_millis(100);

struct Shared {
    /// Where connections go; a restarted server has another port.
    upstream: Mutex<SocketAddr>,
    weather: AtomicUsize,
    recorded: Mutex<Vec<u8>>,
    recording: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
    /// Bytes that may still pass towards the server before every connection is cut; u64::MAX for no limit.
    cut_after: AtomicU64,
    connections: Mutex<Vec<TcpStream>>,
    stopped: AtomicBool,
}

/// A running proxy; dropping it cuts every connection.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Listens on a free port of loopback and forwards to `upstream`.
    pub fn start(upstream: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            weather: AtomicUsize::new(Weather::Clear as usize),
            recorded: Mutex::new(Vec::new()),
            recording: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            cut_after: AtomicU64::new(u64::MAX),
            connections: Mutex::new(Vec::new()),
            stopped: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.stopped.load(Ordering::SeqCst) {
                    break;
                }
                accepting.clone().accept(client);
            }
        });
        Ok(Self { address, shared })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on connections go here.
    pub fn point_at(&self, upstream: SocketAddr) {
        *self.shared.upstream.lock().unwrap() = upstream;
    }

    /// Starts keeping every byte.
    pub fn record(&self) {
        self.shared.recording.store(true, Ordering::SeqCst);
    }

    /// What was recorded so far.
    pub fn recorded(&self) -> Vec<u8> {
        self.shared.recorded.lock().unwrap().clone()
    }

    /// Changes the weather; anything but clear also cuts or freezes what is connected now.
    pub fn set(&self, weather: Weather) {
        self.shared
            .weather
            .store(weather as usize, Ordering::SeqCst);
        if weather == Weather::Refuse {
            self.cut();
        }
    }

    /// Cuts every connection now.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Cuts every connection as soon as so many more bytes went towards the server.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.cut_after.store(bytes, Ordering::SeqCst);
    }

    /// Bytes sent towards the server since the start.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// Bytes received from the server since the start.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.shared.cut();
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn weather(&self) -> usize {
        self.weather.load(Ordering::SeqCst)
    }

    fn cut(&self) {
        for stream in self.connections.lock().unwrap().drain(..) {
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    fn accept(self: Arc<Self>, client: TcpStream) {
        if self.weather() == Weather::Refuse as usize {
            return;
        }
        let upstream = *self.upstream.lock().unwrap();
        let Ok(server) = TcpStream::connect(upstream) else {
            return;
        };
        drop(client.set_nodelay(true));
        drop(server.set_nodelay(true));
        let (Ok(client_out), Ok(server_out)) = (client.try_clone(), server.try_clone()) else {
            return;
        };
        {
            let mut open = self.connections.lock().unwrap();
            open.extend(client.try_clone());
            open.extend(server.try_clone());
        }
        let up = self.clone();
        thread::spawn(move || up.pump(client, server_out, true));
        thread::spawn(move || self.pump(server, client_out, false));
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream, to_server: bool) {
        let mut buffer = vec![0; 64 << 10];
        'open: while let Ok(read @ 1..) = from.read(&mut buffer) {
            while self.weather() == Weather::BlackHole as usize
                && !self.stopped.load(Ordering::SeqCst)
            {
                thread::sleep(Duration::from_millis(10));
            }
            for part in buffer[..read].chunks(SLOW_BYTES) {
                if self.weather() == Weather::Slow as usize {
                    thread::sleep(SLOW_PAUSE);
                }
                if !self.pass(part, &mut to, to_server) {
                    break 'open;
                }
            }
        }
        drop(from.shutdown(Shutdown::Both));
        drop(to.shutdown(Shutdown::Both));
    }

    /// Counts, records and forwards; false once the other side is gone.
    fn pass(&self, bytes: &[u8], to: &mut TcpStream, to_server: bool) -> bool {
        let counter = if to_server {
            &self.sent
        } else {
            &self.received
        };
        counter.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        if self.recording.load(Ordering::SeqCst) {
            self.recorded.lock().unwrap().extend_from_slice(bytes);
        }
        if to.write_all(bytes).is_err() {
            return false;
        }
        if to_server && self.spent(bytes.len() as u64) {
            self.cut();
        }
        true
    }

    /// Counts down to the planned cut; true once, when it is reached.
    fn spent(&self, bytes: u64) -> bool {
        let left = self.cut_after.load(Ordering::SeqCst);
        if left == u64::MAX {
            return false;
        }
        let rest = left.saturating_sub(bytes);
        self.cut_after
            .store(if rest == 0 { u64::MAX } else { rest }, Ordering::SeqCst);
        rest == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let mut copy = stream.try_clone().unwrap();
                    drop(std::io::copy(&mut copy, &mut stream));
                });
            }
        });
        address
    }

    #[test]
    fn bytes_pass_are_counted_and_recorded() {
        let proxy = Proxy::start(echo()).unwrap();
        proxy.record();
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        stream.write_all(b"hello").unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
        assert_eq!((proxy.sent(), proxy.received()), (5, 5));
        assert_eq!(proxy.recorded(), b"hellohello");
    }

    #[test]
    fn a_cut_ends_connections_and_refusal_keeps_new_ones_out() {
        let proxy = Proxy::start(echo()).unwrap();
        proxy.cut_after(3);
        let mut stream = TcpStream::connect(proxy.address()).unwrap();
        stream.write_all(b"hello").unwrap();
        let mut rest = Vec::new();
        // Some of the echo may come before the cut; then the stream ends.
        drop(stream.read_to_end(&mut rest));
        assert!(rest.len() <= 5);
        proxy.set(Weather::Refuse);
        let mut refused = TcpStream::connect(proxy.address()).unwrap();
        assert!(matches!(refused.read(&mut [0]), Ok(0) | Err(_)));
    }
}
