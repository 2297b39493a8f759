//! The installer: from a stick to a disk that boots.
//!
//! ```text
//! look at the hardware -> find the stick -> choose the disk -> check the payload -> write -> boot entry -> report -> off
//!          |                    |                |                   |               |           |
//!          +--- nothing was changed so far ------+-------------------+               |       (told, goes on:
//!                                                                                    |        the fallback path
//!                        failure: words, report on the stick, wait for power-off <---+        boots as well)
//! ```

pub mod choose;
pub mod efi;
pub mod efivars;
pub mod hardware;
pub mod progress;
pub mod stick;
pub mod target;
pub mod write;

use std::path::Path;
use std::time::{Duration, Instant};

use imaging::content::Content;
use imaging::disk::{self, ESP};
use imaging::parts::{PartName, Parts};
use uuid::Uuid;

use crate::Error;
use crate::block::Disk;
use crate::console::Consoles;
use crate::uevent::Uevents;
use hardware::Hardware;
use progress::Meter;
use stick::Stick;
use target::BlockTarget;
use write::Job;

/// How the program calls itself on the consoles.
pub const PROGRAM: &str = "skerry-installer";

/// Disks show up within this time after the stick did, which is the slowest of them.
const SETTLED: Duration = Duration::from_millis(500);
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
/// A machine in which no disk will do gets this long to show another one.
const DISK_LIMIT: Duration = Duration::from_secs(15);

/// Speaks to the consoles and remembers what was said for the report.
struct Log<'a> {
    consoles: &'a mut Consoles,
    lines: Vec<String>,
}

impl Log<'_> {
    fn say(&mut self, line: impl AsRef<str>) {
        self.consoles.say(&format!("{PROGRAM}: {}", line.as_ref()));
        self.lines.push(line.as_ref().to_owned());
    }
}

/// Does it all. With an error, everything to tell has been told, and a report lies on the stick if it could be written.
pub fn run(consoles: &mut Consoles) -> Result<(), Error> {
    let start = Instant::now();
    let events = Uevents::listen();
    let mut log = Log {
        consoles,
        lines: Vec::new(),
    };
    // Without variables there is no boot entry; that is told when it is missed.
    let variables = efivars::mount();
    let booted_from = efivars::boot_partition();

    let stick = match Stick::find(&events, booted_from.as_deref(), log.consoles) {
        Ok(stick) => stick,
        Err(error) => {
            tell_hardware(&mut log);
            tell_failure(&mut log, &error);
            return Err(error);
        }
    };
    events.settle(SETTLED, SETTLE_LIMIT);
    let hardware = tell_hardware(&mut log);
    let result = install(&stick, &events, variables, &mut log);
    match &result {
        Ok(()) => log.say(format!("installed in {} s", start.elapsed().as_secs())),
        Err(error) => tell_failure(&mut log, error),
    }
    let report = format!("{}\n", log.lines.join("\n"));
    let name = hardware::report_name(&hardware, &Uuid::new_v4().to_string());
    if let Err(error) = stick.write_report(&name, &report) {
        log.say(format!("no report on the stick: {error}"));
    }
    stick.unmount();
    if result.is_ok() {
        log.say("done, remove the stick");
    }
    result
}

fn tell_hardware(log: &mut Log) -> Hardware {
    let hardware = hardware::look(Path::new("/"));
    for line in hardware.lines(&hardware::disks(Path::new("/"))) {
        log.say(line);
    }
    hardware
}

fn tell_failure(log: &mut Log, error: &Error) {
    log.say(format!("failed: {error}"));
    log.say(error.advice());
}

fn install(
    stick: &Stick,
    events: &Uevents,
    variables: Result<(), Error>,
    log: &mut Log,
) -> Result<(), Error> {
    let parts = stick.parts()?;
    let config = stick.config()?;
    log.say(format!(
        "image: version {}, {}",
        parts.version, parts.variant
    ));
    let disk = choose_disk(events, &stick.disk)?;
    log.say(format!(
        "installing to {}, {} MiB",
        disk.name,
        disk.size >> 20
    ));
    check_payload(&parts, &stick.payload(), log.consoles)?;

    let table = disk::plan(disk.size, disk.sector, parts.root_hash, &mut Uuid::new_v4)?;
    let payload = stick.payload();
    let job = Job {
        root: Content::file(
            "root.img",
            payload.join(PartName::Root.file_name()),
            parts.file(PartName::Root)?,
        ),
        esp: disk::esp_contents(&parts, &payload)?,
        config,
        table,
    };
    let node = disk.node();
    let mut target = BlockTarget::open(&node, disk.size, disk.sector).map_err(Error::system(
        "open for writing",
        node.display().to_string(),
    ))?;
    write::carry_out(&job, &mut target, log.consoles)?;
    log.say("written and read back");

    let entry = variables.and_then(|()| {
        let missing =
            || Error::system("find", "the ESP")(std::io::Error::from(std::io::ErrorKind::NotFound));
        let esp = job.table.partitions.get(&ESP).ok_or_else(missing)?;
        efivars::add_boot_entry(ESP, esp, disk::LOADER_PATH)
    });
    match entry {
        Ok(number) => log.say(format!("boot entry Boot{number:04X} is first")),
        Err(error) => log.say(format!(
            "no boot entry, the disk's fallback path must do: {error}"
        )),
    }
    Ok(())
}

fn choose_disk(events: &Uevents, stick: &str) -> Result<Disk, Error> {
    let mut refusal = None;
    let chosen = events.until(DISK_LIMIT, &mut || (), &mut || {
        let disks = hardware::disks(Path::new("/"));
        match choose::choose(&disks, stick) {
            Ok(disk) => Some(Ok(disk.clone())),
            // More disks do not make it clearer.
            Err(ambiguous @ choose::Refusal::Ambiguous(_)) => Some(Err(ambiguous)),
            Err(none) => {
                refusal = Some(none);
                None
            }
        }
    });
    let none = || choose::Refusal::None("no disk at all".to_owned());
    match chosen {
        Some(chosen) => Ok(chosen?),
        None => Err(refusal.unwrap_or_else(none).into()),
    }
}

fn check_payload(parts: &Parts, payload: &Path, consoles: &mut Consoles) -> Result<(), Error> {
    let total = PartName::PAYLOAD
        .iter()
        .filter_map(|name| parts.file(*name).ok())
        .map(|f| f.size)
        .sum();
    let mut meter = Meter::start(consoles, format!("{PROGRAM}: checking the stick"), total);
    let mut last = 0;
    parts.verify(payload, &PartName::PAYLOAD, &mut |done, _| {
        meter.add(done - last);
        last = done;
    })?;
    meter.finish();
    Ok(())
}
