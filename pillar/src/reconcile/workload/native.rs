//! Native containers: the host's kernel, namespaces of their own, run by crun.
//!
//! ```text
//! <run>/apps/<id>/
//!     ns/user ns/net      the namespaces
//!     lower               the image's EROFS, read-only
//!     mapped              the same with the container's ids as owners
//!     scratch             the scratch disk, ext4; native/upper and native/work in it
//!     rootfs              overlay of both: what the container sees
//!     volumes/<n>         further volumes
//!     bundle/config.json  what crun is told
//! ```
//!
//! All of it stands before the container's unit starts, and is taken away when it has ended.

use std::fs;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use guest_api::ContainerSpec;
use protocol::ids::AppId;
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::bundle::{self, IDS, Places};
use super::namespaces::{self, NamespaceError};
use super::start::{Start, StartKind, StartNet};
use crate::host::files::{self, FileError, fail};
use crate::host::program::{Program, ProgramError};
use crate::host::units::UnitSpec;
use crate::paths::Paths;
use crate::reconcile::network::links::{LinkError, Links};
use crate::reconcile::network::plan::MARK;

/// A native container that could not be set up or taken down.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A namespace or a mount.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A link.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The container's network.
    #[error("setting up {name} in the container's network: {source}")]
    Inside {
        /// The interface.
        name: String,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// The work was cut short.
    #[error("setting up the container was interrupted")]
    Interrupted,
}

/// The program that runs containers.
const CRUN: &str = "/usr/bin/crun";

/// Where crun keeps its state.
fn crun_root(paths: &Paths) -> PathBuf {
    paths.run.join("crun")
}

/// Sets up everything that the container needs.
pub async fn prepare(start: &Start, paths: &Paths, dir: &Path) -> Result<(), NativeError> {
    let StartKind::Native {
        rootfs,
        scratch,
        container,
        ..
    } = &start.kind
    else {
        return Ok(());
    };
    tear_down(paths, start.app, dir).await?;
    let at = |name: &str| dir.join(name);
    files::make_dir(dir, 0o711)?;
    for name in [
        "ns", "lower", "mapped", "scratch", "rootfs", "volumes", "bundle", "etc",
    ] {
        files::make_dir(&at(name), 0o711)?;
    }
    let (user, network) = (at("ns/user"), at("ns/net"));
    let first = start.number.subordinate_ids();
    {
        let (user, network) = (user.clone(), network.clone());
        tokio::task::spawn_blocking(move || namespaces::make(&user, &network, first, IDS))
            .await
            .map_err(|_| NativeError::Interrupted)??;
    }
    mount_image(rootfs, &at("lower"), "erofs", "loop,ro,nodev,nosuid").await?;
    mount_image(scratch, &at("scratch"), "ext4", "loop,nodev,nosuid").await?;
    {
        let dir = dir.to_owned();
        let user = user.clone();
        tokio::task::spawn_blocking(move || mount_root(&dir, &user, first))
            .await
            .map_err(|_| NativeError::Interrupted)??;
    }
    let mut volumes = Vec::new();
    for (index, disk) in start
        .disks
        .iter()
        .enumerate()
        .filter(|(_, disk)| !disk.mount_dir.is_empty())
    {
        let place = at("volumes").join(index.to_string());
        files::make_dir(&place, 0o711)?;
        let options = if disk.readonly {
            "loop,ro,nodev,nosuid"
        } else {
            "loop,nodev,nosuid"
        };
        mount_image(&disk.path, &place, "ext4", options).await?;
        if !disk.readonly {
            std::os::unix::fs::chown(&place, Some(first), Some(first))
                .map_err(fail("giving away", &place))?;
        }
        volumes.push((
            place.display().to_string(),
            disk.mount_dir.clone(),
            disk.readonly,
        ));
    }
    write_bundle(start, container, dir, &volumes)?;
    for (index, net) in start.nets.iter().enumerate() {
        plug(net, index, &network).await?;
    }
    let nets = start.nets.clone();
    tokio::task::spawn_blocking(move || namespaces::inside(&network, move || configure(&nets)))
        .await
        .map_err(|_| NativeError::Interrupted)???;
    Ok(())
}

async fn mount_image(
    image: &Path,
    place: &Path,
    kind: &str,
    options: &str,
) -> Result<(), ProgramError> {
    // mount(8) finds and sets up a loop device that goes with the mount.
    Program::new("mount")
        .args(["-t", kind, "-o", options])
        .arg(image)
        .arg(place)
        .run()
        .await?;
    Ok(())
}

/// Mounts the container's root: the image with the container's ids, the scratch disk's layer over it.
fn mount_root(dir: &Path, user: &Path, first: u32) -> Result<(), NativeError> {
    let mapped = dir.join("mapped");
    namespaces::mount_mapped(&dir.join("lower"), &mapped, user)?;
    let upper = dir.join("scratch/native/upper");
    let work = dir.join("scratch/native/work");
    for layer in [&upper, &work] {
        if !layer.is_dir() {
            files::make_dir(layer, 0o755)?;
            // The writable layer is not mapped: overlayfs works there with the host's root, and what the container writes
            // lies there under the container's ids as the host sees them.
            std::os::unix::fs::chown(layer, Some(first), Some(first))
                .map_err(fail("giving away", layer))?;
        }
    }
    // A new layer has the mode of the image's root directory.
    let mode = fs::metadata(dir.join("lower"))
        .map_err(fail("looking at", dir))?
        .permissions();
    fs::set_permissions(&upper, mode).map_err(fail("setting the mode of", &upper))?;
    Ok(namespaces::mount_overlay(
        &mapped,
        &upper,
        &work,
        &dir.join("rootfs"),
    )?)
}

fn write_bundle(
    start: &Start,
    container: &ContainerSpec,
    dir: &Path,
    volumes: &[(String, String, bool)],
) -> Result<(), FileError> {
    let (resolv_conf, hosts) = (dir.join("etc/resolv.conf"), dir.join("etc/hosts"));
    let servers: String = container
        .dns
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    files::write_volatile(&resolv_conf, servers.as_bytes(), 0o644)?;
    let address = start
        .nets
        .first()
        .map(|net| format!("{} {}\n", net.address, container.hostname));
    let names = format!("127.0.0.1 localhost\n{}", address.unwrap_or_default());
    files::write_volatile(&hosts, names.as_bytes(), 0o644)?;
    let places = Places {
        root: &dir.join("rootfs"),
        user_namespace: &dir.join("ns/user"),
        network_namespace: &dir.join("ns/net"),
        resolv_conf: &resolv_conf,
        hosts: &hosts,
    };
    let config = bundle::config(start, container, &places, volumes);
    files::write_volatile(
        &dir.join("bundle/config.json"),
        config.to_string().as_bytes(),
        0o600,
    )
}

/// Makes a pair of interfaces, one on the bridge, the other in the container's network.
async fn plug(net: &StartNet, index: usize, network: &Path) -> Result<(), NativeError> {
    let links = Links::open()?;
    let failed = |source| NativeError::Inside {
        name: net.tap.clone(),
        source,
    };
    links.delete(&net.tap).await?;
    let peer = format!("p{}", net.tap);
    let namespace = fs::File::open(network).map_err(fail("opening", network))?;
    let handle = links.handle();
    handle
        .link()
        .add(LinkVeth::new(&net.tap, &peer).build())
        .execute()
        .await
        .map_err(failed)?;
    links.mark(&net.tap, MARK).await?;
    let message = LinkUnspec::new_with_name(&peer)
        .address(net.mac.0.to_vec())
        .build();
    handle.link().set(message).execute().await.map_err(failed)?;
    let peer_index = links.index(&peer).await?;
    let message = LinkUnspec::new_with_index(peer_index)
        .setns_by_fd(namespace.as_raw_fd())
        .name(format!("eth{index}"))
        .build();
    handle.link().set(message).execute().await.map_err(failed)?;
    links.plug(&net.tap, &net.bridge).await?;
    let message = LinkUnspec::new_with_name(&net.tap).up().build();
    handle.link().set(message).execute().await.map_err(failed)
}

/// Gives the container's interfaces their addresses and routes. Runs on a thread in the container's network.
fn configure(nets: &[StartNet]) -> Result<(), NativeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(LinkError::Socket)?;
    runtime.block_on(async {
        let links = Links::open()?;
        let handle = links.handle();
        let failed = |name: &str| {
            let name = name.to_owned();
            move |source| NativeError::Inside { name, source }
        };
        let up = |name: &str| {
            handle
                .link()
                .set(LinkUnspec::new_with_name(name).up().build())
                .execute()
        };
        up("lo").await.map_err(failed("lo"))?;
        for (index, net) in nets.iter().enumerate() {
            let name = format!("eth{index}");
            let number = links.index(&name).await?;
            let address = handle
                .address()
                .add(number, IpAddr::V4(net.address), net.prefix);
            address.execute().await.map_err(failed(&name))?;
            up(&name).await.map_err(failed(&name))?;
            if index == 0 {
                let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                    .gateway(net.gateway)
                    .build();
                handle
                    .route()
                    .add(route)
                    .execute()
                    .await
                    .map_err(failed(&name))?;
            }
        }
        Ok(())
    })
}

/// The unit in which the container runs. crun itself is root on the host until it has entered the namespaces.
#[must_use]
pub fn unit(name: String, start: &Start, dir: &Path) -> UnitSpec {
    let run = dir.parent().and_then(Path::parent).unwrap_or(dir);
    let property = |name: &str, value: String| (name.to_owned(), value);
    UnitSpec {
        name,
        description: format!("Skerry app {}", super::start::hostname(&start.name)),
        program: CRUN.into(),
        args: vec![
            "--root".into(),
            run.join("crun").into(),
            // The unit is the container's cgroup; its limits are set there.
            "--cgroup-manager=disabled".into(),
            "run".into(),
            "--bundle".into(),
            dir.join("bundle").into(),
            start.app.to_string().into(),
        ],
        properties: vec![
            property("Slice", "skerry.slice".into()),
            property("MemoryMax", format!("{}M", start.memory_mib)),
            property("MemorySwapMax", "0".into()),
            property("CPUQuota", format!("{}%", u32::from(start.vcpus) * 100)),
            property("IOAccounting", "yes".into()),
            property("TasksMax", "1024".into()),
            property("LimitCORE", "0".into()),
            // Raised here: the container's root may not raise it any more.
            property("LimitNOFILE", "65536".into()),
            property("OOMScoreAdjust", "300".into()),
            property("TimeoutStopSec", "10".into()),
            property("NoNewPrivileges", "yes".into()),
        ],
    }
}

/// Sends the container's first process a signal.
pub async fn signal(paths: &Paths, app: AppId, signal: i32) -> Result<(), ProgramError> {
    Program::new(CRUN)
        .arg("--root")
        .arg(crun_root(paths))
        .args(["kill", &app.to_string(), &signal.to_string()])
        .run()
        .await?;
    Ok(())
}

/// Takes away all that [`prepare`] and crun set up; what is not there is fine.
pub async fn tear_down(paths: &Paths, app: AppId, dir: &Path) -> Result<(), NativeError> {
    let state = crun_root(paths).join(app.to_string());
    if state.exists() {
        // Its processes are gone or about to be; what crun remembers must not stand in the way of the next start.
        let forgotten = Program::new(CRUN)
            .arg("--root")
            .arg(crun_root(paths))
            .args(["delete", "--force", &app.to_string()])
            .run()
            .await;
        if forgotten.is_err() {
            files::remove_tree(&state)?;
        }
    }
    if !dir.join("ns").exists() {
        return Ok(());
    }
    let dir = dir.to_owned();
    tokio::task::spawn_blocking(move || {
        namespaces::unmount_below(&dir)?;
        // Never a tree with something still mounted in it: only empty directories and our own small files go.
        for name in ["lower", "mapped", "scratch", "rootfs"] {
            let place = dir.join(name);
            match fs::remove_dir(&place) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(fail("removing", &place)(error).into());
                }
                _ => {}
            }
        }
        for name in ["ns", "volumes", "bundle", "etc"] {
            files::remove_tree(&dir.join(name))?;
        }
        Ok(())
    })
    .await
    .map_err(|_| NativeError::Interrupted)?
}
