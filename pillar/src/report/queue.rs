//! The queue of info messages: the newest of each object, kept until the controller has it.
//!
//! EVE's rule for failures that may pass: a delay that doubles from 1 to 15 minutes, for each object by itself; a newer
//! message of the same object takes the older one's place and its delay.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::eve::info::ZInfoMsg;
use tokio::time::Instant;

use super::info::Key;

const FLOOR: Duration = Duration::from_secs(60);
const CEILING: Duration = Duration::from_secs(15 * 60);

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: BTreeMap<Key, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    message: ZInfoMsg,
    at: Instant,
    delay: Option<Duration>,
}

impl Queue {
    /// Puts a message in, to be sent at once unless an older one of its object is being retried.
    pub fn put(&mut self, key: Key, message: ZInfoMsg, now: Instant) {
        match self.waiting.get_mut(&key) {
            Some(waiting) => waiting.message = message,
            None => {
                self.waiting.insert(
                    key,
                    Waiting {
                        message,
                        at: now,
                        delay: None,
                    },
                );
            }
        }
    }

    /// A message whose time has come.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<(Key, ZInfoMsg)> {
        self.waiting
            .iter()
            .filter(|(_, waiting)| waiting.at <= now)
            .min_by_key(|(_, waiting)| waiting.at)
            .map(|(key, waiting)| (*key, waiting.message.clone()))
    }

    /// When the next message is due.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.at).min()
    }

    /// The controller has `message`, or never wants it. A newer one of the object stays.
    pub fn done(&mut self, key: &Key, message: &ZInfoMsg) {
        if self
            .waiting
            .get(key)
            .is_some_and(|waiting| waiting.message == *message)
        {
            self.waiting.remove(key);
        }
    }

    /// The controller did not take it.
    pub fn failed(&mut self, key: &Key, now: Instant) {
        if let Some(waiting) = self.waiting.get_mut(key) {
            let delay = waiting
                .delay
                .map_or(FLOOR, |delay| (delay * 2).min(CEILING));
            waiting.delay = Some(delay);
            waiting.at = now + delay;
        }
    }

    /// Nobody answers: what is due waits for the least delay.
    pub fn hold(&mut self, now: Instant) {
        for waiting in self
            .waiting
            .values_mut()
            .filter(|waiting| waiting.at <= now)
        {
            waiting.at = now + FLOOR;
        }
    }

    /// The controller is back: everything is due.
    pub fn all_due(&mut self, now: Instant) {
        for waiting in self.waiting.values_mut() {
            waiting.at = now;
            waiting.delay = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> ZInfoMsg {
        ZInfoMsg {
            dev_id: text.to_owned(),
            ..ZInfoMsg::default()
        }
    }

    #[test]
    fn the_newest_of_an_object_is_kept_until_the_controller_has_it() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.put(Key::Device, message("one"), now);
        let (key, sent) = queue.due(now).unwrap();
        queue.put(Key::Device, message("two"), now);
        queue.done(&key, &sent);
        assert_eq!(queue.due(now).unwrap().1, message("two"));
        queue.done(&Key::Device, &message("two"));
        assert!(queue.due(now).is_none() && queue.next().is_none());
    }

    #[test]
    fn delays_double_from_one_minute_to_fifteen_and_end_when_the_controller_is_back() {
        let mut now = Instant::now();
        let mut queue = Queue::default();
        queue.put(Key::Device, message("one"), now);
        let mut minutes = Vec::new();
        for _ in 0..6 {
            queue.failed(&Key::Device, now);
            assert!(queue.due(now).is_none());
            let next = queue.next().unwrap();
            minutes.push((next - now).as_secs() / 60);
            now = next;
            assert!(queue.due(now).is_some());
        }
        assert_eq!(minutes, [1, 2, 4, 8, 15, 15]);
        queue.failed(&Key::Device, now);
        queue.put(Key::Device, message("two"), now);
        assert!(
            queue.due(now).is_none(),
            "a newer message does not jump the delay"
        );
        queue.all_due(now);
        assert_eq!(queue.due(now).unwrap().1, message("two"));
    }

    #[test]
    fn one_failure_of_the_network_holds_the_others() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.put(Key::Device, message("one"), now);
        queue.put(
            Key::App(protocol::ids::AppId(uuid::Uuid::nil())),
            message("two"),
            now,
        );
        queue.failed(&Key::Device, now);
        queue.hold(now);
        assert!(queue.due(now).is_none());
        assert_eq!(queue.next().unwrap(), now + FLOOR);
    }
}
