//! What devices tell of themselves: info, metrics, flow logs, state of the hardware. Everything is kept as it came, the last of each
//! sort about each thing, and what operators see follows from it.

use std::fmt::Display;

use jiff::{SignedDuration, Timestamp};
use operator_api::{App, Device, Object as _, WatchEventType};
use prost::Message;
use protocol::envelope;
use protocol::eve::flowlog::FlowMessage;
use protocol::eve::hardwarehealth::ZHardwareHealth;
use protocol::eve::info::z_info_msg::InfoContent;
use protocol::eve::info::{
    ZInfoApp, ZInfoContentTree, ZInfoMsg, ZInfoNetworkInstance, ZInfoVolume,
};
use protocol::eve::metrics::ZMetricMsg;
use protocol::ids::{AppId, DeviceId};

use super::ranges::Range;
use super::status::{self, Told, timestamp};
use super::{Fleet, Opened, Refused, figures, names};
use crate::store::{Connection, StoreError, objects, reports};

const APP: &str = "app";
const VOLUME: &str = "volume";
const CONTENT: &str = "content";
const NETWORK: &str = "network";
const DEVICE: &str = "device";

/// Stored times further ahead of the controller's clock than this come from a device whose clock was wrong.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);
/// Longest id of a thing that a report is about.
const MAX_ABOUT: usize = 128;

impl Fleet {
    /// Takes an info message.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn info(&self, opened: Opened) -> Result<(), Refused> {
        let message: ZInfoMsg = envelope::decode(&opened.payload, "ZInfoMsg")?;
        let device = opened.device.id;
        if !message.dev_id.is_empty() && message.dev_id.parse().ok() != Some(device) {
            return Err(Refused::Malformed(format!(
                "info of device {device} says that it is of device {:?}",
                message.dev_id
            )));
        }
        let now = Timestamp::now();
        let told = message
            .at_time_stamp
            .as_ref()
            .and_then(timestamp)
            .unwrap_or(now);
        let (sort, about) = key(&message);
        if about.len() > MAX_ABOUT {
            return Err(Refused::Malformed(format!(
                "info about a thing with an id of {} bytes",
                about.len()
            )));
        }
        let mut writer = self.store.write().await?;
        let horizon = (now + CLOCK_TOLERANCE).as_millisecond();
        if !reports::put(
            &mut writer,
            device,
            (sort, about),
            told.as_millisecond(),
            horizon,
            &opened.payload,
        )
        .await?
        {
            // Late or replayed: what is known is newer.
            return Ok(());
        }
        let mut moved = false;
        let changed = match &message.info_content {
            Some(InfoContent::Dinfo(info)) => {
                if let Some(mut object) = objects::by_id::<Device>(&mut writer, device).await? {
                    let before = Range::named(&object.status.app_network);
                    status::device(&mut object.status, info, told);
                    moved = Range::named(&object.status.app_network) != before;
                    objects::set_status::<Device>(&mut writer, device, &object.status).await?;
                }
                Vec::new()
            }
            Some(
                InfoContent::Ainfo(_)
                | InfoContent::Vinfo(_)
                | InfoContent::Cinfo(_)
                | InfoContent::Niinfo(_),
            ) => apps_changed(&mut writer, device, (sort, about), now).await?,
            _ => Vec::new(),
        };
        writer.commit().await?;
        if moved {
            tracing::info!(%device, "an uplink touches the apps' network, so it moves");
            self.config_changed([device]);
        }
        if matches!(message.info_content, Some(InfoContent::Dinfo(_))) {
            self.tell_device(device, WatchEventType::Modified).await;
        }
        for app in changed {
            self.tell_app(app, WatchEventType::Modified).await;
        }
        Ok(())
    }

    /// Takes a metrics message. Figures are kept in memory and written now and then: the next message repeats them.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn metrics(&self, opened: Opened) -> Result<(), Refused> {
        let message: ZMetricMsg = envelope::decode(&opened.payload, "ZMetricMsg")?;
        let figures = figures::read(&message);
        let apps: Vec<AppId> = figures.apps.keys().copied().collect();
        opened.device.state().figures = Some(Box::new(figures));
        opened.device.seen(Timestamp::now().as_millisecond());
        let device = opened.device.id;
        self.tell_device(device, WatchEventType::Modified).await;
        for app in apps {
            self.tell_app(app, WatchEventType::Modified).await;
        }
        Ok(())
    }

    /// Takes network flows; the last message is kept.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn flows(&self, opened: Opened) -> Result<(), Refused> {
        let _: FlowMessage = envelope::decode(&opened.payload, "FlowMessage")?;
        self.keep(&opened, "flows").await
    }

    /// Takes the state of the hardware; the last message is kept.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn hardware_health(&self, opened: Opened) -> Result<(), Refused> {
        let _: ZHardwareHealth = envelope::decode(&opened.payload, "ZHardwareHealth")?;
        self.keep(&opened, "hardwarehealth").await
    }

    async fn keep(&self, opened: &Opened, sort: &'static str) -> Result<(), Refused> {
        let now = Timestamp::now().as_millisecond();
        let mut writer = self.store.write().await?;
        reports::put(
            &mut writer,
            opened.device.id,
            (sort, ""),
            now,
            i64::MAX,
            &opened.payload,
        )
        .await?;
        writer.commit().await?;
        Ok(())
    }
}

/// Sort of an info message, and the id of what it is about.
fn key(message: &ZInfoMsg) -> (&'static str, &str) {
    match &message.info_content {
        Some(InfoContent::Dinfo(_)) => (DEVICE, ""),
        Some(InfoContent::Ainfo(app)) => (APP, &app.app_id),
        Some(InfoContent::Vinfo(volume)) => (VOLUME, &volume.uuid),
        Some(InfoContent::Cinfo(content)) => (CONTENT, &content.uuid),
        Some(InfoContent::Niinfo(network)) => (NETWORK, &network.network_id),
        Some(InfoContent::Binfo(_)) => ("blobs", ""),
        Some(InfoContent::Hwinfo(_)) => ("hardware", ""),
        Some(InfoContent::Locinfo(_)) => ("location", ""),
        Some(_) => ("other", ""),
        None => ("nothing", ""),
    }
}

/// Works out anew the status of the device's apps that a report is about; gives those that it changed.
async fn apps_changed(
    connection: &mut Connection,
    device: DeviceId,
    report: (&str, &str),
    now: Timestamp,
) -> Result<Vec<AppId>, StoreError> {
    let (sort, about) = report;
    let network = names::network(device);
    let mut changed = Vec::new();
    for app in objects::of_device::<App>(connection, device).await? {
        let Some(id) = app.id() else { continue };
        let Some(datastore) = objects::datastore_of(connection, id).await? else {
            continue;
        };
        let content = names::content(datastore, &app);
        let volume = names::volume(id, content);
        let concerned = match sort {
            APP => about == id.to_string(),
            VOLUME => about == volume.to_string(),
            CONTENT => about == content.to_string(),
            _ => about == network.to_string(),
        };
        if !concerned {
            continue;
        }
        let told_app = told::<ZInfoApp>(connection, device, APP, id).await?;
        let told_volume = told::<ZInfoVolume>(connection, device, VOLUME, volume).await?;
        let told_content = told::<ZInfoContentTree>(connection, device, CONTENT, content).await?;
        let told_network =
            told::<ZInfoNetworkInstance>(connection, device, NETWORK, network).await?;
        let told = Told {
            app: told_app.as_ref(),
            volume: told_volume.as_ref(),
            content: told_content.as_ref(),
            network: told_network.as_ref(),
        };
        let mut status = status::app(&app, &app.status, told, now);
        status::app_conditions(&mut status, now);
        if status != app.status {
            objects::set_status::<App>(connection, id, &status).await?;
            changed.push(id);
        }
    }
    Ok(changed)
}

/// A part of an info message, by its type.
trait Part: Sized {
    fn of(content: InfoContent) -> Option<Self>;
}

macro_rules! part {
    ($($type:ty => $variant:ident),*) => {$(
        impl Part for $type {
            fn of(content: InfoContent) -> Option<Self> {
                match content {
                    InfoContent::$variant(part) => Some(part),
                    _ => None,
                }
            }
        }
    )*};
}

part!(ZInfoApp => Ainfo, ZInfoVolume => Vinfo, ZInfoContentTree => Cinfo, ZInfoNetworkInstance => Niinfo);

async fn told<T: Part>(
    connection: &mut Connection,
    device: DeviceId,
    sort: &str,
    about: impl Display,
) -> Result<Option<T>, StoreError> {
    let Some(body) = reports::get(connection, device, (sort, &about.to_string())).await? else {
        return Ok(None);
    };
    // It was decoded when it came, so this fails only if the row was damaged since; the next report heals it.
    Ok(ZInfoMsg::decode(body.as_slice())
        .ok()
        .and_then(|message| message.info_content)
        .and_then(T::of))
}
