//! The agent from start to end.
//!
//! ```text
//!   starting --> bundle read, clock floored --> keys opened --> checkpoint in force (apps start, network or not)
//!                                                                    |
//!            .--- uplink has an address <----------------------------'
//!            v
//!   tasks: enrol, attest, config, info, metrics, logs, link, bless; each supervised by itself
//! ```
//!
//! The reconcilers are no part of this: they get [`Desired`] and give [`Observed`], and run whether or not a controller
//! was ever reached.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onboarding::keys::{Identity, IdentityError, Protection};
use onboarding::registration;
use onboarding::smbios::Machine;
use onboarding::tpm::Tpm;
use protocol::ids::DeviceId;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::backoff::Backoff;
use crate::bundle::Bundle;
use crate::clock::Clock;
use crate::config::translate::Secrets;
use crate::config::{DeviceSecrets, InForce, NoSecrets, checkpoint, put_in_force};
use crate::conn::{Connection, Sender, Serials};
use crate::context::{Attestation, Contact, Context};
use crate::domain::desired::Desired;
use crate::domain::observed::{AppPhase, Observed};
use crate::host::units::Systemd;
use crate::paths::Paths;
use crate::status::{Status, Subject, Topic};
use crate::supervise::{self, Pace};
use crate::{
    allowance, attest, bless, enrol, follow, link, logs, notify, power, refusal, report,
    time_servers, tls, uplink,
};

/// The firmware says that there is a TPM; its device file comes once the driver is bound.
const TPM_TABLE: &str = "/sys/firmware/acpi/tables/TPM2";
/// How long a TPM that the firmware names may take to appear.
const TPM_PATIENCE: Duration = Duration::from_secs(30);

/// How this start differs from one on a real device.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where things lie.
    pub paths: Paths,
    /// The TPM: a device file, or the unix socket of a simulated one.
    pub tpm: PathBuf,
    /// Where the system shows its network.
    pub network: uplink::Sources,
    /// The program that reads the journal; none: no logs are shipped.
    pub journalctl: Option<PathBuf>,
    /// Whether this machine is ours: its clock may be set, its boot blessed, and its network waited for. Not on a build
    /// machine.
    pub owns_machine: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            paths: Paths::default(),
            tpm: Tpm::DEVICE.into(),
            network: uplink::Sources::system("/run/resolv.conf".into()),
            journalctl: Some("journalctl".into()),
            owns_machine: true,
        }
    }
}

/// Runs the agent until the process is told to end. `desired` leads to the reconcilers, `observed` comes from them.
pub async fn run(
    options: Options,
    status: Status,
    desired: watch::Sender<Arc<Desired>>,
    observed: watch::Receiver<Arc<Observed>>,
) {
    let paths = options.paths.clone();
    let version = paths.version();
    status.say(Subject::Start, &format!("starting {version}"));
    let mut tasks = JoinSet::new();
    tasks.spawn(tell_apps(observed.clone(), status.clone()));
    tasks.spawn(watchdog());
    if options.owns_machine {
        let told = status.clone();
        supervise::spawn(
            &mut tasks,
            status.clone(),
            Pace::default(),
            "power button",
            move || power::run(power::Sources::default(), told.clone()),
        );
    }

    let bundle = read_bundle(&paths, &status).await;
    let clock = Clock::start(
        paths.pillar().join("clock"),
        bundle.built_at,
        options.owns_machine,
        status.clone(),
    );
    let (uplinks_out, uplinks) = watch::channel(Vec::new());
    let network = options.network.clone();
    let told = status.clone();
    supervise::spawn(
        &mut tasks,
        status.clone(),
        Pace::default(),
        "uplink",
        move || uplink::run(network.clone(), told.clone(), uplinks_out.clone()),
    );

    let config = watch::Sender::new(Arc::new(InForce::default()));
    if options.owns_machine {
        let (clock, config) = (clock.clone(), config.subscribe());
        let (uplinks, told) = (uplinks.clone(), status.clone());
        supervise::spawn(
            &mut tasks,
            status.clone(),
            Pace::default(),
            "time servers",
            move || {
                time_servers::run(
                    time_servers::Files::default(),
                    clock.clone(),
                    config.clone(),
                    uplinks.clone(),
                    Arc::new(Systemd),
                    told.clone(),
                )
            },
        );
    }
    let attestation = watch::Sender::new(earlier_attestation(&paths, &status));
    tasks.spawn(allowance::run(
        config.subscribe(),
        attestation.subscribe(),
        desired,
    ));
    // The checkpoint waits for one try to open the keys, since its secrets need them; but not for a second.
    let first = open_identity(&options, &status).await;
    let (id, grant) = enrol::kept(&paths, first.as_ref().ok().map(|identity| &**identity));
    let (device, grant) = (watch::Sender::new(id), watch::Sender::new(grant));
    let start = Checkpoint {
        paths: &paths,
        bundle: &bundle,
        clock: &clock,
        status: &status,
    };
    start.apply(*device.borrow(), first.as_ref().ok(), &config);
    notify::send("READY=1");
    let identity = match first {
        Ok(identity) => identity,
        Err(reason) => {
            let identity = keep_opening(&options, &status, reason).await;
            let (id, kept) = enrol::kept(&paths, Some(&identity));
            device.send_replace(id);
            grant.send_replace(kept);
            start.apply(*device.borrow(), Some(&identity), &config);
            identity
        }
    };
    status.clear(Topic::Identity);

    if options.owns_machine {
        uplink::wait(&uplinks, &status).await;
    }
    let machine = Machine::read(Path::new("/"));
    let name = enrol::sender(&identity, grant.borrow().as_deref());
    let conn = connect(
        &options, &bundle, &clock, &status, &identity, &machine, name,
    )
    .await;
    if device.borrow().is_some() {
        conn.set_named();
    }
    let ctx = Arc::new(Context {
        paths,
        version,
        bundle,
        machine,
        status: status.clone(),
        clock,
        identity,
        conn,
        device,
        grant,
        token: Mutex::new(None),
        refusal: Mutex::default(),
        attestation,
        config,
        uplinks,
        observed,
        contact: watch::Sender::new(Contact::default()),
        reattest: Notify::new(),
        reenrol: Notify::new(),
        poll: Notify::new(),
    });
    start_tasks(&mut tasks, &ctx, &options);
    // None of them ends; what would end them is the end of the process.
    while tasks.join_next().await.is_some() {}
}

/// What an earlier start leaves of attestation. The apps of a refused device are not started from the checkpoint to be stopped a moment
/// later, or never if the controller is away.
fn earlier_attestation(paths: &Paths, status: &Status) -> Attestation {
    let refused = refusal::load(paths, status);
    if refused {
        status.raise(
            Topic::Attestation,
            "attestation: the controller refused this device's boot state before this start, and has not trusted it since",
        );
    }
    Attestation::Trying { refused }
}

fn start_tasks(tasks: &mut JoinSet<()>, ctx: &Arc<Context>, options: &Options) {
    let status = &ctx.status;
    let pace = Pace::default();
    macro_rules! task {
        ($name:literal, $make:expr) => {{
            let ctx = ctx.clone();
            let make = $make;
            supervise::spawn(tasks, status.clone(), pace, $name, move || {
                make(ctx.clone())
            });
        }};
    }
    task!("enrol", enrol::run);
    task!("attest", attest::run);
    task!("config", follow::run);
    task!("info", report::run_info);
    task!("metrics", report::run_metrics);
    task!("link", link::run);
    if let Some(program) = options.journalctl.clone() {
        task!("logs", move |ctx| logs::run(ctx, program.clone()));
    }
    if options.owns_machine {
        task!("bless", bless::run);
    }
}

/// Reads the bundle, again and again if need be: without it there is nothing that the agent could do.
async fn read_bundle(paths: &Paths, status: &Status) -> Bundle {
    loop {
        match Bundle::read(paths) {
            Ok(bundle) => {
                status.clear(Topic::Bundle);
                return bundle;
            }
            Err(error) => status.raise(Topic::Bundle, &error.to_string()),
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

/// One try to open the device's keys, or to make them.
async fn open_identity(options: &Options, status: &Status) -> Result<Arc<Identity>, String> {
    wait_for_tpm(&options.tpm).await;
    let (dir, path, status) = (options.paths.pillar(), options.tpm.clone(), status.clone());
    let opened = tokio::task::spawn_blocking(move || -> Result<Identity, String> {
        let tpm = open_tpm(&path)?;
        let opened = match Identity::open_or_create(&dir, tpm.clone()) {
            // Old and odd TPMs: better known as unprotected than not at work.
            Err(IdentityError::UnsuitableTpm { .. }) => Identity::open_or_create(&dir, None),
            opened => opened,
        };
        let identity = opened.map_err(|error| error.to_string())?;
        match tpm.and_then(|tpm| unused(&identity, &tpm)) {
            Some(reason) => status.raise(
                Topic::Tpm,
                &format!(
                    "the device's keys are in software, and nothing proves what it boots: {reason}"
                ),
            ),
            None => status.clear(Topic::Tpm),
        }
        Ok(identity)
    });
    opened
        .await
        .map_err(|error| error.to_string())?
        .map(Arc::new)
}

/// Why the keys are not in the TPM although there is one. Asked at each start and not only when they are made: who stands before the box may
/// do so years later.
fn unused(identity: &Identity, tpm: &Tpm) -> Option<String> {
    match identity.protection() {
        Protection::Tpm => None,
        Protection::Software => Some(match tpm.capabilities() {
            Ok(able) if able.missing().is_empty() => {
                "they were made before there was a TPM; to move them, install the device anew"
                    .to_owned()
            }
            Ok(able) => {
                let missing = able.missing();
                IdentityError::UnsuitableTpm { missing }.to_string()
            }
            Err(error) => error.to_string(),
        }),
    }
}

/// Keys that were made in software stay there for ever, so a TPM that is only slow must not be taken for none.
async fn wait_for_tpm(path: &Path) {
    let until = tokio::time::Instant::now() + TPM_PATIENCE;
    while !path.exists() && Path::new(TPM_TABLE).exists() && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn open_tpm(path: &Path) -> Result<Option<Tpm>, String> {
    use std::os::unix::fs::FileTypeExt as _;
    let kind = match std::fs::metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("TPM {}: {error}", path.display())),
    };
    let tpm = if kind.is_socket() {
        Tpm::connect_unix(path)
    } else {
        Tpm::open(path)
    };
    tpm.map(Some).map_err(|error| error.to_string())
}

async fn keep_opening(options: &Options, status: &Status, reason: String) -> Arc<Identity> {
    let mut reason = reason;
    let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(60));
    loop {
        status.raise(Topic::Identity, &reason);
        tokio::time::sleep(backoff.next_delay()).await;
        match open_identity(options, status).await {
            Ok(identity) => return identity,
            Err(error) => reason = error,
        }
    }
}

/// What a start from the checkpoint needs.
struct Checkpoint<'a> {
    paths: &'a Paths,
    bundle: &'a Bundle,
    clock: &'a Clock,
    status: &'a Status,
}

impl Checkpoint<'_> {
    fn apply(
        &self,
        device: Option<DeviceId>,
        identity: Option<&Arc<Identity>>,
        config: &watch::Sender<Arc<InForce>>,
    ) {
        let Some(device) = device else { return };
        let loaded = checkpoint::load(
            self.paths,
            &self.bundle.root_pem,
            self.clock,
            device,
            |verified| match identity {
                Some(identity) => {
                    let secrets = DeviceSecrets {
                        identity: identity.clone(),
                        certs: Some(verified.certs.clone()),
                    };
                    Box::new(secrets) as Box<dyn Secrets>
                }
                None => Box::new(NoSecrets),
            },
        );
        match loaded {
            Ok(Some(in_force)) => put_in_force(in_force, config, self.status, " from checkpoint"),
            Ok(None) => {}
            Err(error) => self.status.raise(Topic::Config, &error.to_string()),
        }
    }
}

async fn connect(
    options: &Options,
    bundle: &Bundle,
    clock: &Clock,
    status: &Status,
    identity: &Arc<Identity>,
    machine: &Machine,
    name: Sender,
) -> Connection {
    let certificate = identity.device_certificate();
    loop {
        let made = tls::client_config(&bundle.tls_roots, clock.clone())
            .map_err(|error| error.to_string())
            .and_then(|tls| {
                let serials = Serials {
                    hardware: registration::serial(machine, certificate),
                    software: bundle.soft_serial.clone().unwrap_or_default(),
                };
                let certs_file = checkpoint::certs_file(&options.paths);
                Connection::new(
                    bundle,
                    tls,
                    clock.clone(),
                    status.clone(),
                    name.clone(),
                    serials,
                    certs_file,
                )
                .map_err(|error| error.to_string())
            });
        match made {
            Ok(conn) => return conn,
            Err(error) => status.raise(Topic::Bundle, &error),
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
}

/// Tells the person at the screen how the apps are.
async fn tell_apps(mut observed: watch::Receiver<Arc<Observed>>, status: Status) {
    let mut known = BTreeSet::new();
    loop {
        let now = observed.borrow_and_update().clone();
        for (id, app) in &now.apps {
            status.say(
                Subject::App(*id),
                &format!("app {} {}", app.name, phase(&app.phase)),
            );
            match &app.trouble {
                Some(trouble) => status.say(
                    Subject::AppTrouble(*id),
                    &format!("trouble: app {}: {}", app.name, trouble.message),
                ),
                None => status.forget(&Subject::AppTrouble(*id)),
            }
        }
        let present: BTreeSet<_> = now.apps.keys().copied().collect();
        for gone in known.difference(&present) {
            status.forget(&Subject::App(*gone));
            status.forget(&Subject::AppTrouble(*gone));
        }
        known = present;
        if observed.changed().await.is_err() {
            // The reconcilers are gone; their supervisor says so.
            std::future::pending::<()>().await;
        }
    }
}

fn phase(phase: &AppPhase) -> &'static str {
    match phase {
        AppPhase::Preparing => "preparing",
        AppPhase::Starting => "starting",
        AppPhase::Running { .. } => "running",
        AppPhase::BackOff { .. } => "restarting",
        AppPhase::Stopping => "stopping",
        AppPhase::Halted => "halted",
    }
}

async fn watchdog() {
    let Some(interval) = notify::watchdog() else {
        return std::future::pending().await;
    };
    loop {
        notify::send("WATCHDOG=1");
        tokio::time::sleep(interval).await;
    }
}
