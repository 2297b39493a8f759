//! Open links to devices, and console sessions through them.
//!
//! A console is two channels laid end to end. The operator's end is made with the session; the device's end waits under the session's
//! id until the device takes it up, once and within its lifetime:
//!
//! ```text
//! open -> (openConsole over the link) -> waiting --taken up--> bytes both ways --either end dropped--> closed
//!                                           '---lifetime over----> closed
//! ```

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use protocol::ids::{AppId, DeviceId, SessionId};
use protocol::link::ServerMessage;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Messages that wait for a slow device; a device with more is cut off, and asks for its config when it is back.
const QUEUE: usize = 16;
/// Console messages on the way; beyond them the sender waits.
const CONSOLE_QUEUE: usize = 32;
/// Console sessions that wait for their device at the same time.
const MAX_WAITING: usize = 1024;

/// Open links and waiting consoles.
pub struct Links {
    /// How long a console waits for its device.
    lifetime: Duration,
    links: Mutex<HashMap<DeviceId, (u64, mpsc::Sender<ServerMessage>)>>,
    waiting: Mutex<HashMap<SessionId, Waiting>>,
    count: AtomicU64,
}

struct Waiting {
    until: Instant,
    end: ConsoleEnd,
}

/// One end of a console.
#[derive(Debug)]
pub struct ConsoleEnd {
    /// To the other end.
    pub to: mpsc::Sender<Bytes>,
    /// From the other end; `None` when it is gone.
    pub from: mpsc::Receiver<Bytes>,
}

/// Why there is no console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoConsole {
    /// The device has no link open.
    NotConnected,
    /// Too many wait.
    TooMany,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Links {
    /// No links yet. A console waits for its device no longer than `lifetime`.
    pub fn new(lifetime: Duration) -> Self {
        Self {
            lifetime,
            links: Mutex::default(),
            waiting: Mutex::default(),
            count: AtomicU64::new(0),
        }
    }

    /// Notes a new link; an older one of the same device ends. Gives what to send, and the number to give back.
    pub fn open(&self, device: DeviceId) -> (u64, mpsc::Receiver<ServerMessage>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        lock(&self.links).insert(device, (number, sender));
        (number, receiver)
    }

    /// Notes that a link has ended.
    pub fn close(&self, device: DeviceId, number: u64) {
        let mut links = lock(&self.links);
        if links
            .get(&device)
            .is_some_and(|(newest, _)| *newest == number)
        {
            links.remove(&device);
        }
    }

    /// Cuts a device off.
    pub fn cut(&self, device: DeviceId) {
        lock(&self.links).remove(&device);
    }

    /// Whether the device has a link open.
    pub fn is_open(&self, device: DeviceId) -> bool {
        lock(&self.links).contains_key(&device)
    }

    /// Sends a message; says whether it is on its way.
    pub fn send(&self, device: DeviceId, message: ServerMessage) -> bool {
        let mut links = lock(&self.links);
        let Some((_, sender)) = links.get(&device) else {
            return false;
        };
        if sender.try_send(message).is_ok() {
            return true;
        }
        links.remove(&device);
        false
    }

    /// Asks the device for an app's console and gives the operator's end of it.
    ///
    /// # Errors
    /// [`NoConsole`].
    pub fn open_console(
        &self,
        device: DeviceId,
        app: AppId,
    ) -> Result<(SessionId, ConsoleEnd), NoConsole> {
        let session = SessionId::random();
        let (to_device, from_operator) = mpsc::channel(CONSOLE_QUEUE);
        let (to_operator, from_device) = mpsc::channel(CONSOLE_QUEUE);
        {
            let mut waiting = lock(&self.waiting);
            let now = Instant::now();
            waiting.retain(|_, waiting| waiting.until > now);
            if waiting.len() >= MAX_WAITING {
                return Err(NoConsole::TooMany);
            }
            let end = ConsoleEnd {
                to: to_operator,
                from: from_operator,
            };
            waiting.insert(
                session,
                Waiting {
                    until: now + self.lifetime,
                    end,
                },
            );
        }
        if !self.send(device, ServerMessage::OpenConsole { session, app }) {
            lock(&self.waiting).remove(&session);
            return Err(NoConsole::NotConnected);
        }
        Ok((
            session,
            ConsoleEnd {
                to: to_device,
                from: from_device,
            },
        ))
    }

    /// The device's end of a session: there once, and not for long.
    pub fn take_console(&self, session: SessionId) -> Option<ConsoleEnd> {
        let waiting = lock(&self.waiting).remove(&session)?;
        (waiting.until > Instant::now()).then_some(waiting.end)
    }

    /// Drops sessions that no device took up in time, which ends the operator's side.
    pub fn drop_stale(&self) {
        let now = Instant::now();
        lock(&self.waiting).retain(|_, waiting| waiting.until > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_newer_link_takes_over() {
        let links = Links::new(Duration::from_millis(20));
        let device = DeviceId::random();
        let (first, mut old) = links.open(device);
        let (_, mut new) = links.open(device);
        assert!(old.recv().await.is_none());
        links.close(device, first);
        assert!(
            links.send(device, ServerMessage::ConfigChanged),
            "closing the old one leaves the new one"
        );
        assert_eq!(new.recv().await, Some(ServerMessage::ConfigChanged));
    }

    #[tokio::test]
    async fn a_device_that_does_not_read_is_cut_off() {
        let links = Links::new(Duration::from_millis(20));
        let device = DeviceId::random();
        let (_number, _receiver) = links.open(device);
        for _ in 0..QUEUE {
            assert!(links.send(device, ServerMessage::ConfigChanged));
        }
        assert!(!links.send(device, ServerMessage::ConfigChanged));
        assert!(!links.is_open(device));
    }

    #[tokio::test]
    async fn a_session_is_taken_up_once_and_in_time() {
        let links = Links::new(Duration::from_millis(20));
        let device = DeviceId::random();
        assert_eq!(
            links.open_console(device, AppId::random()).err(),
            Some(NoConsole::NotConnected)
        );
        let (_number, mut receiver) = links.open(device);
        let (session, mut operator) = links.open_console(device, AppId::random()).unwrap();
        assert!(matches!(
            receiver.recv().await,
            Some(ServerMessage::OpenConsole { .. })
        ));
        let end = links.take_console(session).unwrap();
        assert!(links.take_console(session).is_none(), "once");
        end.to.send(Bytes::from_static(b"login: ")).await.unwrap();
        assert_eq!(operator.from.recv().await.unwrap(), "login: ");
        drop(end);
        assert!(operator.from.recv().await.is_none());

        let (late, mut operator) = links.open_console(device, AppId::random()).unwrap();
        tokio::time::sleep(Duration::from_millis(40)).await;
        assert!(links.take_console(late).is_none());
        let (_stale, _end) = links.open_console(device, AppId::random()).unwrap();
        assert!(operator.from.recv().await.is_none());
    }
}
