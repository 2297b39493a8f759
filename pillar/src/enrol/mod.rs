//! How the device comes by its id: the ways that its image names, in their order.
//!
//! ```text
//!                .-- no answer: asked again ------------------.
//!                |-- wait, refusal: later, the same way ------|
//!                v                                            |
//!   start --> Trying(way) ------------------------------------'
//!                |   ^  |
//!                |   |  '-- this controller does not know the way, or does not let us in by it: Trying(next way);
//!                |   |      after the last one the first, with growing delays
//!        granted |   |
//!                v   | the controller does not know us any more (asked at most every ten minutes),
//!             Enrolled   or a third of the granted certificate's life is left
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`zero_touch`] | our way: two sealed flights, no secret on the image |
//! | [`eve`] | EVE's way: the image's onboarding key vouches for the device |
//! | [`owner`] | whom the device believes to be its owner |
//!
//! A device that was granted an id works under it at once at every start; one that EVE's way gave an id asks for it again beside its work,
//! as EVE does. Which way it was decides where the next start begins, so that a device that a fleet knows does not change its name
//! because its image also knows another way.

pub mod eve;
pub mod owner;
pub mod zero_touch;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use onboarding::keys::Identity;
use protocol::enrolment::image::{Enrolment, Way};
use protocol::ids::DeviceId;
use protocol::keys::CertHash;

use self::zero_touch::{Granted, Words};
use crate::backoff::Backoff;
use crate::conn::{self, Sender};
use crate::context::Context;
use crate::generations;
use crate::grant::{self, Grant};
use crate::paths::Paths;
use crate::status::{Subject, Topic};

/// EVE's delays between tries of a device that the controller refuses.
const REFUSED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// A controller that is away may be back any moment, and asking costs it nothing meanwhile.
const AWAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Least time between two questions of an enrolled device.
const ASK_AGAIN: Duration = Duration::from_secs(600);
/// How often an enrolled device looks whether its certificate is to be renewed: once the time is known, and before.
const LOOK_AT_AGE: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(5));

/// The id and the grant of an earlier start.
#[must_use]
pub fn kept(paths: &Paths, identity: Option<&Identity>) -> (Option<DeviceId>, Option<Arc<Grant>>) {
    let grant = identity.and_then(|identity| grant::load(paths, identity.device_certificate()));
    match grant {
        Some(grant) => (Some(grant.device), Some(Arc::new(grant))),
        None => (eve::kept_id(paths), None),
    }
}

/// Under which name the device speaks: its granted certificate's, or that of its own.
#[must_use]
pub fn sender(identity: &Arc<Identity>, grant: Option<&Grant>) -> Sender {
    Sender {
        signer: identity.clone(),
        hash: match grant {
            Some(grant) => CertHash::of_der(&grant.certificate),
            None => CertHash::of_der(identity.device_certificate().der()),
        },
        certificate: None,
    }
}

/// Where in the image's order the device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place(usize);

impl Place {
    /// Where a device begins that was enrolled like this.
    fn first(enrolment: &Enrolment, granted: bool, has_id: bool) -> Self {
        let way = match (granted, has_id) {
            (true, _) => Way::ZeroTouch,
            (false, true) => Way::Eve,
            (false, false) => return Self(0),
        };
        let order = enrolment.order();
        Self(order.iter().position(|other| *other == way).unwrap_or(0))
    }

    fn way(self, enrolment: &Enrolment) -> Way {
        // An order has one way at least.
        enrolment.order().get(self.0).copied().unwrap_or(Way::Eve)
    }

    fn next(self, enrolment: &Enrolment) -> Self {
        Self((self.0 + 1) % enrolment.order().len().max(1))
    }
}

/// What one try of a way came to.
enum Outcome {
    /// EVE's way gave an id.
    Known(DeviceId),
    /// The zero-touch way gave a grant.
    Granted(Granted),
    /// No answer.
    Away(conn::Error),
    /// This way does not lead in here.
    OtherWay(String),
    /// The zero-touch way does not lead in now.
    Later(zero_touch::Error),
    /// EVE's way failed.
    Failed(eve::Error),
}

/// Enrols the device and keeps it so.
pub async fn run(ctx: Arc<Context>) -> Result<(), Infallible> {
    let enrolment = &ctx.bundle.enrolment;
    let (granted, has_id) = (ctx.grant.borrow().clone(), ctx.device.borrow().is_some());
    let mut place = Place::first(enrolment, granted.is_some(), has_id);
    let mut refused = Backoff::new(REFUSED.0, REFUSED.1);
    let mut away = Backoff::new(AWAY.0, AWAY.1);
    let mut words = Words::default();
    if let Some(grant) = granted {
        settle(&ctx, grant.device).await;
        zero_touch::set_mark(&ctx, grant.owner).await;
        // Nothing was asked in this start so far.
        until_asked(&ctx, Duration::ZERO).await;
    }
    loop {
        match attempt(&ctx, place.way(enrolment)).await {
            Outcome::Known(id) => {
                refused.reset();
                away.reset();
                ctx.in_contact();
                settle_eve(&ctx, id).await;
                until_asked(&ctx, ASK_AGAIN).await;
            }
            Outcome::Granted(granted) => {
                refused.reset();
                away.reset();
                words = Words::default();
                take_up(&ctx, granted).await;
                until_asked(&ctx, ASK_AGAIN).await;
            }
            Outcome::Away(reason) => {
                ctx.out_of_contact(&reason);
                tokio::select! {
                    () = tokio::time::sleep(away.next_delay()) => {}
                    () = ctx.contact_returns() => {}
                }
            }
            Outcome::OtherWay(reason) => {
                let next = place.next(enrolment);
                tracing::info!(reason, way = place.way(enrolment).name(), "not enrolled");
                if next.0 == 0 {
                    ctx.status
                        .raise(Topic::Enrolment, &format!("not enrolled: {reason}"));
                    tokio::time::sleep(refused.next_delay()).await;
                }
                place = next;
            }
            Outcome::Later(why) => {
                tell(&ctx, &mut words, &why);
                let delay = match why {
                    // Somebody is about to approve: growing delays would have them wait.
                    zero_touch::Error::Wait { retry, .. } => retry,
                    why => why.delay(refused.next_delay()),
                };
                tokio::time::sleep(delay).await;
            }
            Outcome::Failed(error) => {
                ctx.status
                    .raise(Topic::Enrolment, &format!("not enrolled: {error}"));
                tokio::time::sleep(refused.next_delay()).await;
            }
        }
    }
}

/// One try of one way.
async fn attempt(ctx: &Arc<Context>, way: Way) -> Outcome {
    match (way, ctx.bundle.enrolment.home()) {
        (Way::ZeroTouch, Some(home)) => match zero_touch::enrol(ctx, home).await {
            Ok(granted) => Outcome::Granted(granted),
            Err(zero_touch::Error::Connection(error)) if error.is_away() => Outcome::Away(error),
            Err(why @ zero_touch::Error::NotSpoken(_)) => Outcome::OtherWay(why.to_string()),
            Err(why) => Outcome::Later(why),
        },
        // A bundle with the zero-touch way and no home is not read as one.
        (Way::ZeroTouch, None) => Outcome::OtherWay("the image names no owner".to_owned()),
        (Way::Eve, _) => match eve::enrol(ctx).await {
            Ok(id) => Outcome::Known(id),
            Err(error) if error.is_refusal() => Outcome::OtherWay(error.to_string()),
            Err(eve::Error::Connection(error)) if error.is_away() => Outcome::Away(error),
            Err(error) => match error {
                eve::Error::NoOnboardingKey(reason) | eve::Error::Refused { ask: reason, .. } => {
                    Outcome::Away(reason)
                }
                error => Outcome::Failed(error),
            },
        },
    }
}

/// Says on the screen why the device is not enrolled.
fn tell(ctx: &Context, words: &mut Words, why: &zero_touch::Error) {
    match why {
        zero_touch::Error::Wait { reason, .. } => {
            // Nothing is wrong: a person is waited for.
            ctx.status.clear(Topic::Enrolment);
            words.say(ctx, "waiting for approval");
            if !reason.is_empty() {
                tracing::info!(reason, "waiting for approval");
            }
        }
        why => {
            words.say(ctx, "not enrolled");
            ctx.status
                .raise(Topic::Enrolment, &format!("not enrolled: {why}"));
        }
    }
}

/// Waits until an enrolled device has to enrol again, and for `least` at least.
async fn until_asked(ctx: &Context, least: Duration) {
    let enrolled = tokio::time::Instant::now();
    tokio::select! {
        () = ctx.reenrol.notified() => {}
        () = too_old(ctx) => tracing::info!("a third of the certificate's life is left"),
    }
    tokio::time::sleep_until(enrolled + least).await;
}

/// Waits until the granted certificate is to be renewed. A clock that nobody vouches for says nothing about that.
async fn too_old(ctx: &Context) {
    let Some(at) = ctx.grant.borrow().as_ref().map(|grant| grant.renew_at()) else {
        return std::future::pending().await;
    };
    loop {
        match ctx.clock.trusted() {
            true if ctx.clock.now() >= at => return,
            true => tokio::time::sleep(LOOK_AT_AGE.0).await,
            false => tokio::time::sleep(LOOK_AT_AGE.1).await,
        }
    }
}

/// Puts a new grant, which is on the disk, to use.
async fn take_up(ctx: &Arc<Context>, Granted { grant, token }: Granted) {
    let (id, owner) = (grant.device, grant.owner);
    let renewed = ctx.device.borrow().is_some();
    ctx.conn.speak_as(sender(&ctx.identity, Some(&grant)));
    ctx.grant.send_replace(Some(Arc::new(grant)));
    ctx.keep_token(token);
    settle(ctx, id).await;
    if renewed {
        // The old token is not good any more. At the first grant, attestation has waited for the id and comes by itself.
        ctx.reattest.notify_one();
    }
    zero_touch::set_mark(ctx, owner).await;
}

async fn settle_eve(ctx: &Context, id: DeviceId) {
    if *ctx.device.borrow() != Some(id)
        && let Err(error) =
            generations::store(eve::id_file(&ctx.paths), id.to_string().into_bytes()).await
    {
        ctx.status.raise(Topic::Disk, &error.to_string());
    }
    settle(ctx, id).await;
}

async fn settle(ctx: &Context, id: DeviceId) {
    ctx.status.clear(Topic::Enrolment);
    ctx.status.say(
        Subject::Enrolment,
        &format!("enrolled as {id} at {}", ctx.conn.server()),
    );
    ctx.conn.set_named();
    let before = ctx.device.send_replace(Some(id));
    if before.is_some_and(|before| before != id) {
        // Another id is another device to the controller: that one's config and token are not ours any more.
        ctx.reattest.notify_one();
        ctx.poll.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use protocol::cipher::SoftwareAgreement;
    use protocol::digest::Digest;
    use protocol::enrolment::image::Home;
    use protocol::enrolment::owner::Pinned;

    use super::*;

    fn enrolment(order: &[Way]) -> Enrolment {
        let home = Home {
            owner: Pinned {
                epoch: 1,
                root: Digest::of(b"1"),
                next: Digest::of(b"2"),
                delegation: 0,
            },
            controller: SoftwareAgreement::from_scalar(&[7; 32])
                .unwrap()
                .public_point()
                .unwrap(),
        };
        let home = order.contains(&Way::ZeroTouch).then_some(home);
        Enrolment::new(order.to_vec(), home).unwrap()
    }

    #[test]
    fn ways_are_tried_in_the_images_order_and_again() {
        let both = enrolment(&[Way::ZeroTouch, Way::Eve]);
        let first = Place::first(&both, false, false);
        let second = first.next(&both);
        assert_eq!(first.way(&both), Way::ZeroTouch);
        assert_eq!(second.way(&both), Way::Eve);
        assert_eq!(second.next(&both), first);
        let one = enrolment(&[Way::ZeroTouch]);
        let first = Place::first(&one, false, false);
        assert_eq!(first.next(&one), first);
    }

    #[test]
    fn a_device_goes_on_with_the_way_that_it_came() {
        let both = enrolment(&[Way::ZeroTouch, Way::Eve]);
        assert_eq!(Place::first(&both, true, true).way(&both), Way::ZeroTouch);
        assert_eq!(Place::first(&both, false, true).way(&both), Way::Eve);
        // An id of EVE's way on a disk whose image knows it no more.
        let one = enrolment(&[Way::ZeroTouch]);
        assert_eq!(Place::first(&one, false, true).way(&one), Way::ZeroTouch);
    }
}
