//! What happens in a guest. It says what it found on its first console; a line with `FAILED` ends the test.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::system::{self, POWER_BUTTON, Result, pattern};

/// Where the outer machine's end of the network answers.
pub const HOST: &str = "10.9.0.1:9000";
/// The guest's own address.
pub const ADDRESS: [u8; 4] = [10, 9, 0, 2];
/// The port of the host that the guest calls over vsock, and the port of the guest that the host calls.
pub const VSOCK_OF_HOST: u32 = 7;
pub const VSOCK_OF_GUEST: u32 = 52;
/// How much goes over network and vsock, and onto disks at [`DISK_OFFSET`].
pub const BYTES: usize = 1 << 20;
pub const DISK_OFFSET: u64 = 3 << 20;

pub fn run() {
    let scene = system::from_command_line("scene").unwrap_or_default();
    let played = match scene.as_str() {
        "devices" => devices(),
        "ticks" => ticks(),
        "deaf" => deaf(),
        // The init of a machine that ends takes the kernel with it.
        "panic" => {
            println!("READY");
            std::process::exit(1)
        }
        other => Err(format!("there is no scene {other:?}").into()),
    };
    if let Err(error) = played {
        println!("FAILED {error}");
    }
    system::power_off();
}

/// Powers off when the button is pressed.
fn wait_for_button() -> Result<()> {
    println!("READY");
    system::wait_for(POWER_BUTTON);
    println!("BUTTON");
    Ok(())
}

fn ticks() -> Result<()> {
    std::thread::spawn(|| {
        for tick in 0_u64.. {
            println!("tick {tick}");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    wait_for_button()
}

fn deaf() -> Result<()> {
    println!("READY");
    loop {
        system::wait_for(POWER_BUTTON);
        println!("IGNORED");
    }
}

fn devices() -> Result<()> {
    println!(
        "processors {}",
        fs::read_to_string("/sys/devices/system/cpu/online")?.trim()
    );
    for disk in ["vda", "vdb"] {
        let about = disk_works(disk).map_err(|error| format!("{disk}: {error}"))?;
        println!("disk {disk} {about}");
    }
    let readonly = fs::read_to_string("/sys/block/vdc/ro")?;
    let refused = OpenOptions::new()
        .write(true)
        .open("/dev/vdc")
        .and_then(|disk| disk.write_at(&[1; 512], 0).and_then(|_| disk.sync_all()))
        .is_err();
    println!("disk vdc readonly {} refused {refused}", readonly.trim());

    let mut random = [0; 32];
    File::open("/dev/hwrng")?.read_exact(&mut random)?;
    let source = fs::read_to_string("/sys/class/misc/hw_random/rng_current")?;
    let varied = random.iter().any(|byte| *byte != random[0]);
    println!("random {} varied {varied}", source.trim());

    system::bring_up("eth0", ADDRESS)?;
    let mut stream = TcpStream::connect(HOST).map_err(|error| format!("{HOST}: {error}"))?;
    let sent = pattern(BYTES);
    stream.write_all(&sent)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    println!("network {} same {}", back.len(), back == sent);

    let accept = system::vsock_accept(VSOCK_OF_GUEST)?;
    let mut host = system::vsock_connect(VSOCK_OF_HOST)?;
    host.write_all(&sent)?;
    system::end_of_sending(&host);
    let mut back = Vec::new();
    host.read_to_end(&mut back)?;
    println!("vsock {} same {}", back.len(), back == sent);
    let mut caller = accept()?;
    let mut heard = Vec::new();
    caller.read_to_end(&mut heard)?;
    caller.write_all(&heard)?;
    drop(caller);
    println!("vsock called {}", heard.len());

    for name in ["hvc0", "hvc1", "ttyS0"] {
        let terminal = system::terminal(&Path::new("/dev").join(name))?;
        std::thread::spawn(move || {
            let mut answer = &terminal;
            let _ = writeln!(answer, "{name} listens");
            for line in BufReader::new(&terminal)
                .lines()
                .map_while(|line| line.ok())
            {
                let _ = writeln!(answer, "{name} heard {line}");
            }
        });
    }
    wait_for_button()
}

/// Writes, flushes, and reads back from the device itself.
fn disk_works(name: &str) -> Result<String> {
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .open(Path::new("/dev").join(name))?;
    let wanted = pattern(BYTES);
    disk.write_all_at(&wanted, DISK_OFFSET)?;
    disk.sync_all()?;
    system::forget_cached(&disk)?;
    let mut found = vec![0; BYTES];
    disk.read_exact_at(&mut found, DISK_OFFSET)?;
    let of = |path: &str| -> Result<String> {
        let text = fs::read_to_string(format!("/sys/block/{name}/{path}"))?;
        Ok(text.trim().to_owned())
    };
    Ok(format!(
        "same {} serial {} cache {}",
        found == wanted,
        of("serial")?,
        of("queue/write_cache")?
    ))
}

/// A container's process: runs until it is asked to end, and then ends with a status of its own.
pub fn container() {
    system::block(libc::SIGTERM);
    println!("container runs");
    system::wait_for(libc::SIGTERM);
    println!("container ends");
    std::process::exit(7);
}
