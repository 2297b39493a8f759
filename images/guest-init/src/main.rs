//! PID 1 in a container's microVM. The story stands in the library's head comment; here are its steps in order.

use std::fs;
use std::time::Instant;

use guest_api::ToGuest;
use guest_init::console::{Console, container_output};
use guest_init::machine::State;
use guest_init::run::Container;
use guest_init::{Error, files, mounts, net, process, root, run, spec};
use nix::unistd::sethostname;

fn main() {
    std::panic::set_hook(Box::new(|info| {
        Console::open().say(&format!(
            "stopped by a mistake in the program itself: {info}"
        ));
        run::power_off()
    }));
    let mounted = mounts::own().iter().try_for_each(mounts::apply);
    let mut console = Console::open();
    let signals = run::signals();
    let watched = signals
        .as_ref()
        .map(|_| ())
        .map_err(|e| Error::system("watch", "child processes and the power button")(*e));
    let started = mounted.and(watched).and_then(|()| start());
    let (state, container) = match started {
        Ok(container) => (State::Running, Some(container)),
        Err(error) => {
            console.say(&error.to_string());
            (State::failed(error.to_string(), Instant::now()), None)
        }
    };
    run::run(state, container, signals.as_ref().ok(), &mut console)
}

/// From the initramfs to the running process.
fn start() -> Result<Container, Error> {
    let spec = spec::take()?;
    // Its node is out of sight later.
    let output = container_output()?;
    allow_low_ports();
    root::enter(spec.readonly_root)?;
    sethostname(&spec.hostname).map_err(Error::system("set", "the host name"))?;
    files::write(&spec)?;
    net::set_up(&spec.interfaces)?;
    mounts::mount_volumes(&spec)?;
    mounts::container().iter().try_for_each(mounts::apply)?;
    mounts::fill_dev()?;
    if spec.readonly_root {
        // What is made inside it from here on would fail.
        for directory in ["/proc", spec.cwd.as_str()] {
            fs::create_dir_all(directory).map_err(Error::system("make directory", directory))?;
        }
        root::seal()?;
    }
    Ok(Container {
        process: process::start(&spec, output)?,
        stop: ToGuest::Stop {
            signal: spec.stop_signal,
            grace_seconds: spec.stop_grace_seconds,
        },
    })
}

/// In a machine of one's own there is nobody to take a low port from, nor to ping too much (Docker sets both alike).
fn allow_low_ports() {
    for (path, value) in [
        ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
        ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
    ] {
        // A kernel without the setting has nothing to allow.
        let _ = fs::write(path, value);
    }
}
