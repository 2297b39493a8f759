//! Who becomes a device by EVE's registration: whoever holds the onboarding key of our images is let in, under any serial number.
//! Enrolment without a shared secret is [`super::zero_touch`].

use jiff::Timestamp;
use onboarding::registration;
use operator_api::{Device, DeviceSpec, DeviceStatus, Hardware, Object as _, WatchEventType};
use protocol::envelope::{self, Certificate, Envelope};
use protocol::eve::register::ZRegisterMsg;
use protocol::ids::DeviceId;
use protocol::keys::{CertHash, pem_to_der, sha256};

use super::registry::{Entry, Registry};
use super::{Fleet, Refused};
use crate::store::{Connection, StoreError, identities, next, objects};

/// How a registration came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// A new device.
    New,
    /// It was one already.
    Again,
}

impl Fleet {
    /// Registers a device.
    ///
    /// # Errors
    /// [`Refused::NotAllowed`] if the onboarding certificate is not ours, [`Refused::Clash`] if another device registered with the
    /// same serial number, and whatever is wrong with the message.
    pub async fn register(&self, body: &[u8]) -> Result<Registered, Refused> {
        if body.is_empty() {
            return Err(Refused::Empty);
        }
        let envelope = Envelope::parse(body, envelope::MAX_REQUEST)?;
        let ours = pem_to_der(self.pki.onboarding().0.as_bytes())
            .map_err(|error| Refused::Internal(error.to_string()))?;
        let certificate = Certificate::of_device_der(&ours)
            .map_err(|error| Refused::Internal(error.to_string()))?;
        if !certificate.hash().matches(envelope.sender()) {
            return Err(Refused::NotAllowed(format!(
                "onboarding certificate {} is not the one of this controller's images; make the image anew",
                envelope.sender()
            )));
        }
        let message: ZRegisterMsg = envelope.open_message(&certificate, "ZRegisterMsg")?;
        let registration =
            registration::read(&message).map_err(|error| Refused::Malformed(error.to_string()))?;
        let der = registration.device_certificate_der;
        // A certificate that could check no message would be a device that can never speak.
        Certificate::of_device_der(&der).map_err(|error| Refused::Malformed(error.to_string()))?;
        if self.registry.by_sender(&CertHash::of_der(&der)).is_some() {
            return Ok(Registered::Again);
        }

        let onboarding_hash = sha256(&ours);
        let mut writer = self.store.write().await?;
        if identities::by_certificate(&mut writer, &der)
            .await?
            .is_some()
        {
            return Ok(Registered::Again);
        }
        if !registration.serial.is_empty()
            && let Some(other) =
                identities::by_serial(&mut writer, &onboarding_hash, &registration.serial).await?
        {
            return Err(Refused::Clash(format!(
                "device {other} registered with serial number `{}` and another certificate; delete it if it was reinstalled",
                registration.serial
            )));
        }
        let mut device = Device::new(free_name(&mut writer).await?, DeviceSpec::default());
        device.status = DeviceStatus {
            hardware: Hardware {
                serial: registration.serial.clone(),
                soft_serial: registration.soft_serial.clone(),
                ..Hardware::default()
            },
            ..DeviceStatus::default()
        };
        let now = Timestamp::now();
        let id = objects::insert(&mut writer, &mut device, objects::Links::default(), now).await?;
        let identity = identities::Identity {
            device: id,
            certificate: der.clone(),
            onboarding_hash,
            serial: registration.serial,
            soft_serial: registration.soft_serial,
        };
        identities::insert(&mut writer, &identity).await?;
        writer.commit().await?;
        enter(&self.registry, id, &der, now)?;
        tracing::info!(device = %device.metadata.name, uid = %id, serial = %identity.serial, "a device registered");
        self.tell_device(id, WatchEventType::Added).await;
        Ok(Registered::New)
    }
}

fn enter(registry: &Registry, id: DeviceId, der: &[u8], now: Timestamp) -> Result<(), Refused> {
    let entry =
        Entry::new(id, der, None, 0).map_err(|error| Refused::Internal(error.to_string()))?;
    registry.insert(entry).seen(now.as_millisecond());
    Ok(())
}

/// `box-1`, `box-2`, and so on; numbers are not used twice, and names that operators took are passed over.
pub(super) async fn free_name(connection: &mut Connection) -> Result<String, StoreError> {
    loop {
        let name = format!("box-{}", next(connection, "device").await?);
        if objects::get::<Device>(connection, &name).await?.is_none() {
            return Ok(name);
        }
    }
}
