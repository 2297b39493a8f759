//! URL paths of the device API: EVE's, and our own extension beside them.
//!
//! A path begins with a slash and holds neither host nor query. Paths with a device in them are
//! `/api/v2/edgedevice/id/<uuid>/<action>`; those without are `/api/v2/edgedevice/<action>`.

use crate::ids::{AppId, DeviceId, SessionId};

/// Where the EVE API begins.
pub const EVE: &str = "/api/v2/edgedevice";
/// Where our extension begins.
pub const SKERRY: &str = "/api/skerry/v1";

/// `GET`, unauthenticated: the controller's certificates.
pub const CERTS: &str = "/api/v2/edgedevice/certs";
/// `POST`, signed with the onboarding key: registration.
pub const REGISTER: &str = "/api/v2/edgedevice/register";
/// `GET`, unauthenticated: is the controller there?
pub const PING: &str = "/api/v2/edgedevice/ping";
/// `POST`, signed with the device key: which id do I have?
pub const UUID: &str = "/api/v2/edgedevice/uuid";
/// `GET`, upgraded to a WebSocket: the push channel.
pub const LINK: &str = "/api/skerry/v1/link";

/// `POST`, sealed: first flight of zero-touch enrolment, answered with a challenge.
pub const ENROL_HELLO: &str = "/api/skerry/v1/enrol/hello";
/// `POST`, sealed: second flight, answered with a grant, or with word to wait.
pub const ENROL_EVIDENCE: &str = "/api/skerry/v1/enrol/evidence";

/// Media type of request and reply bodies.
pub const CONTENT_TYPE: &str = "application/x-proto-binary";

/// `POST`: ask for the configuration.
#[must_use]
pub fn config(device: DeviceId) -> String {
    of_device(device, "config")
}

/// `POST`: the four attestation requests.
#[must_use]
pub fn attest(device: DeviceId) -> String {
    of_device(device, "attest")
}

/// `POST`: what the device is.
#[must_use]
pub fn info(device: DeviceId) -> String {
    of_device(device, "info")
}

/// `POST`: figures.
#[must_use]
pub fn metrics(device: DeviceId) -> String {
    of_device(device, "metrics")
}

/// `POST`: the device's own logs.
#[must_use]
pub fn newlogs(device: DeviceId) -> String {
    of_device(device, "newlogs")
}

/// `POST`: an application's logs. EVE's written specification leaves the `id/<uuid>/` part out; its code has it, and
/// the reference controller knows this form only.
#[must_use]
pub fn app_newlogs(device: DeviceId, app: AppId) -> String {
    of_device(device, &format!("apps/instanceid/{app}/newlogs"))
}

/// `POST`: network flows.
#[must_use]
pub fn flowlog(device: DeviceId) -> String {
    of_device(device, "flowlog")
}

/// `POST`: state of the hardware.
#[must_use]
pub fn hardware_health(device: DeviceId) -> String {
    of_device(device, "hardwarehealth")
}

/// `GET`, upgraded to a WebSocket: the device's end of a console.
#[must_use]
pub fn console(session: SessionId) -> String {
    format!("{SKERRY}/console/{session}")
}

fn of_device(device: DeviceId, action: &str) -> String {
    format!("{EVE}/id/{device}/{action}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_eves() {
        let device: DeviceId = "3f2504e0-4f89-41d3-9a0c-0305e82c3301".parse().unwrap();
        let app: AppId = "11111111-2222-4333-8444-555555555555".parse().unwrap();
        assert_eq!(
            config(device),
            "/api/v2/edgedevice/id/3f2504e0-4f89-41d3-9a0c-0305e82c3301/config"
        );
        assert_eq!(
            app_newlogs(device, app),
            "/api/v2/edgedevice/id/3f2504e0-4f89-41d3-9a0c-0305e82c3301/apps/instanceid/\
             11111111-2222-4333-8444-555555555555/newlogs"
        );
        for fixed in [CERTS, REGISTER, PING, UUID] {
            assert!(fixed.starts_with(EVE));
        }
        assert!(LINK.starts_with(SKERRY));
    }
}
