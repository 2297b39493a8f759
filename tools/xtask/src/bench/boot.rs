//! How long a box takes from power-on to enrolled, beside a minimal Debian 12 on the same emulated PC.
//!
//! The peer is the demo's VM: Debian 12 with systemd, Debian's kernel for virtual machines, and one small web server, started
//! by the same firmware straight from kernel and initrd, without a boot loader. It is done at its login banner. It is less than
//! what Debian's installer would put on this PC, whose kernel, initramfs and boot loader are larger.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use testbed::{Bus, DirectBoot, Drive, Pc, Spec};

use super::Row;
use crate::e2e::{Story, Yard};
use crate::site::{Built, sparse_copy};

const PATIENCE: Duration = Duration::from_secs(600);
/// The last thing that both kernels' EFI stubs say; the kernels themselves are quiet.
const KERNEL_STARTS: &str = "EFI stub: Loaded initrd";

/// How long a start took, in seconds.
struct Span {
    from_power: f64,
    from_kernel: f64,
}

impl Span {
    /// From power-on: to the kernel's start, and to the end.
    fn of(kernel: Duration, end: Duration) -> Span {
        Span {
            from_power: end.as_secs_f64(),
            from_kernel: (end - kernel).as_secs_f64(),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{:.1} s from power-on, {:.1} s of it from the kernel's start",
            self.from_power, self.from_kernel
        )
    }
}

pub fn run(built: &Built, dir: &Path) -> Result<Vec<Row>> {
    let yard = Yard::open(built, dir)?;
    let story = Story::begin("boxes", &yard, dir)?;
    let mut pc = story.installed_box("SK-BOOT")?;
    // The first boot makes file systems and keys; the second is every later one.
    let mut spans = Vec::new();
    for _ in 0..2 {
        let start = Instant::now();
        pc.pc.serial().skip();
        pc.pc.power_on()?;
        pc.wait_for(KERNEL_STARTS)?;
        let kernel = start.elapsed();
        pc.wait_for("skerry: enrolled as ")?;
        let enrolled = start.elapsed();
        pc.wait_for("skerry: attested")?;
        let span = Span::of(kernel, enrolled);
        story.step(format!("the box: {span}"));
        spans.push(span);
        pc.press_power()?;
    }
    let debian = minimal_debian(&story, built)?;
    let (first, later) = (&spans[0], &spans[1]);
    story.step(format!("the demo's minimal Debian 12, to login: {debian}"));
    Ok(vec![
        Row::new(
            "first boot, power-on to enrolled (s; 1.5 x Debian VM to login)",
            first.from_power,
            1.5 * debian.from_power,
        ),
        Row::new(
            "later boot, power-on to enrolled (s; Debian VM to login)",
            later.from_power,
            debian.from_power,
        ),
        Row::new(
            "kernel start to enrolled, ratio to Debian VM to login",
            later.from_kernel / debian.from_kernel,
            0.5,
        ),
    ])
}

/// Power-on to login of the demo's minimal Debian, on the bare emulated PC with the same firmware.
fn minimal_debian(story: &Story, built: &Built) -> Result<Span> {
    let dir = story.dir().join("debian");
    std::fs::create_dir_all(&dir)?;
    sparse_copy(&built.machine.join("disk.raw"), &dir.join("drive0.img"))?;
    let mut spec = Spec::new("DEBIAN");
    spec.drives = vec![Drive {
        bus: Bus::Nvme,
        gib: 4,
    }];
    spec.tpm = false;
    spec.direct = Some(DirectBoot {
        kernel: built.machine.join("vmlinuz"),
        initrd: built.machine.join("initrd.img"),
        // As quiet as Debian's `quiet`: a serial line is slow, and a peer that talks more would look slower than it is.
        cmdline: "root=/dev/nvme0n1 rw console=ttyS0 quiet".to_owned(),
        firmware: true,
    });
    let mut pc = Pc::build(spec, &dir)?;
    let start = Instant::now();
    pc.power_on()?;
    pc.serial().expect(KERNEL_STARTS, PATIENCE)?;
    let kernel = start.elapsed();
    // The line before the prompt, which itself is no whole line.
    pc.serial().expect("demo-vm ttyS0", PATIENCE)?;
    Ok(Span::of(kernel, start.elapsed()))
}
