//! The report: turns what is into info messages and metrics, EVE's way.
//!
//! ```text
//!   Observed, config, uplinks, troubles, attestation
//!        | on change (at most each half second), and each timer.deviceinfo.interval
//!        v
//!   info (pure) --> queue: newest per object, retried as long as it makes sense --> POST info
//!   metrics (from /proc and cgroups) each timer.metric.interval, lossy -----------> POST metrics
//! ```
//!
//! Nothing else tells the controller about state.

pub mod info;
pub mod metrics;
pub mod procfs;
pub mod queue;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use protocol::eve::info::ZInfoMsg;
use protocol::ids::AppId;
use protocol::paths;
use tokio::time::Instant;

use self::info::{Hardware, Key, Snapshot};
use self::queue::Queue;
use crate::backoff::fraction;
use crate::context::Context;

/// Changes come in bursts; one message tells all of a burst.
const SETTLE: Duration = Duration::from_millis(300);

/// Sends info for as long as the agent lives.
pub async fn run_info(ctx: Arc<Context>) -> Result<(), Infallible> {
    let device = ctx.device_id().await;
    let path = paths::info(device);
    let hardware = Hardware::read(
        &ctx.machine,
        &ctx.version,
        ctx.identity.tpm().is_some(),
        &ctx.paths,
    );
    let mut sources = Sources::new(&ctx);
    let mut contact = ctx.contact.subscribe();
    let mut returns = contact.borrow_and_update().returns;
    let mut sent: BTreeMap<Key, ZInfoMsg> = BTreeMap::new();
    let mut queue = Queue::default();
    let mut epoch = ctx.config.borrow().settings.epoch;
    let mut whole_at = Instant::now();
    loop {
        let interval = ctx.config.borrow().settings.device_info_interval;
        let now_epoch = ctx.config.borrow().settings.epoch;
        if Instant::now() >= whole_at || now_epoch != epoch {
            // Everything once more: at a start, at the controller's wish, and now and then.
            if now_epoch != epoch || sent.is_empty() {
                sent.clear();
            } else {
                sent.remove(&Key::Device);
            }
            epoch = now_epoch;
            whole_at = Instant::now() + interval.mul_f64(0.8 + 0.4 * fraction());
        }
        let messages = sources
            .snapshot()
            .messages(&device.to_string(), &hardware, ctx.clock.now());
        sent.retain(|key, _| messages.contains_key(key));
        for (key, message) in messages {
            if sent
                .get(&key)
                .is_none_or(|before| !info::same(before, &message))
            {
                queue.put(key, message.clone(), Instant::now());
                sent.insert(key, message);
            }
        }
        while let Some((key, message)) = queue.due(Instant::now()) {
            match ctx.conn.post(&path, message.encode_to_vec()).await {
                Ok(_) => queue.done(&key, &message),
                Err(error) if error.worth_retrying() => {
                    tracing::debug!(?key, %error, "info not sent yet");
                    queue.failed(&key, Instant::now());
                    if error.is_away() {
                        // The others would meet the same; each has its own time to be tried again.
                        queue.hold(Instant::now());
                        ctx.doubt_contact();
                    }
                }
                Err(error) => {
                    tracing::warn!(?key, %error, "info not wanted");
                    queue.done(&key, &message);
                }
            }
        }
        let wake = queue.next().map_or(whole_at, |at| at.min(whole_at));
        tokio::select! {
            () = tokio::time::sleep_until(wake) => {}
            () = sources.changed() => tokio::time::sleep(SETTLE).await,
            _ = contact.changed() => {
                let now = contact.borrow_and_update().returns;
                if now != returns {
                    returns = now;
                    queue.all_due(Instant::now());
                }
            }
        }
    }
}

/// Sends metrics for as long as the agent lives.
pub async fn run_metrics(ctx: Arc<Context>) -> Result<(), Infallible> {
    let device = ctx.device_id().await;
    let path = paths::metrics(device);
    let mut observed = ctx.observed.clone();
    let mut config = ctx.config.subscribe();
    loop {
        let sent_at = Instant::now();
        let restarts = restarts(&ctx);
        let snapshot = ctx.clone();
        let message =
            tokio::task::spawn_blocking(move || metrics::collect(&snapshot, device)).await;
        // What was freed since the last time goes back to the kernel; the budget counts resident memory.
        trim();
        if let Ok(message) = message
            && let Err(error) = ctx.conn.post(&path, message.encode_to_vec()).await
        {
            tracing::debug!(%error, "metrics lost");
        }
        loop {
            let interval = config.borrow_and_update().settings.metric_interval;
            tokio::select! {
                () = tokio::time::sleep_until(sent_at + interval) => break,
                _ = config.changed() => {}
                _ = observed.changed() => {
                    if self::restarts(&ctx) != restarts {
                        break;
                    }
                }
            }
        }
    }
}

fn restarts(ctx: &Context) -> BTreeMap<AppId, u32> {
    ctx.observed
        .borrow()
        .apps
        .iter()
        .map(|(id, app)| (*id, app.restarts))
        .collect()
}

fn trim() {
    // SAFETY: malloc_trim takes a number, keeps its own locks, and may be called at any time from any thread.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Everything that info is made of, watched.
struct Sources {
    observed: tokio::sync::watch::Receiver<Arc<crate::domain::observed::Observed>>,
    config: tokio::sync::watch::Receiver<Arc<crate::config::InForce>>,
    uplinks: tokio::sync::watch::Receiver<Vec<crate::uplink::Uplink>>,
    attestation: tokio::sync::watch::Receiver<crate::context::Attestation>,
    troubles: tokio::sync::watch::Receiver<crate::status::Troubles>,
}

impl Sources {
    fn new(ctx: &Arc<Context>) -> Self {
        Self {
            observed: ctx.observed.clone(),
            config: ctx.config.subscribe(),
            uplinks: ctx.uplinks.clone(),
            attestation: ctx.attestation.subscribe(),
            troubles: ctx.status.troubles(),
        }
    }

    fn snapshot(&mut self) -> Snapshot {
        Snapshot {
            observed: self.observed.borrow_and_update().clone(),
            config: self.config.borrow_and_update().clone(),
            uplinks: self.uplinks.borrow_and_update().clone(),
            attestation: self.attestation.borrow_and_update().clone(),
            troubles: self.troubles.borrow_and_update().clone(),
        }
    }

    async fn changed(&mut self) {
        let closed = tokio::select! {
            changed = self.observed.changed() => changed.is_err(),
            changed = self.config.changed() => changed.is_err(),
            changed = self.uplinks.changed() => changed.is_err(),
            changed = self.attestation.changed() => changed.is_err(),
            changed = self.troubles.changed() => changed.is_err(),
        };
        if closed {
            // A writer is gone and its supervisor will say so; do not spin until it is back.
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }
}
