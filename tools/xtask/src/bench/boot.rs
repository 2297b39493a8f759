//! How long a box takes from power-on to enrolled, beside a stock Debian on the same emulated PC.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use testbed::{Bus, DirectBoot, Drive, Pc, Spec};

use super::Row;
use crate::e2e::{Story, Yard};
use crate::site::{Built, sparse_copy};

const PATIENCE: Duration = Duration::from_secs(600);

pub fn run(dir: &Path) -> Result<Vec<Row>> {
    let built = Built::make()?;
    let yard = Yard::open(&built, dir)?;
    let story = Story::begin("boxes", &yard, dir)?;
    let mut pc = story.installed_box("SK-BOOT")?;
    // The first boot makes file systems and keys; the second is every later one.
    let mut seconds = Vec::new();
    for _ in 0..2 {
        let start = Instant::now();
        pc.pc.serial().skip();
        pc.pc.power_on()?;
        // The last line of the UKI's stub; the kernel itself says little on the console of the production variant.
        pc.wait_for("EFI stub: Measured initrd")?;
        let kernel = start.elapsed();
        pc.wait_for("skerry: enrolled as ")?;
        let enrolled = start.elapsed();
        pc.wait_for("skerry: attested")?;
        seconds.push((enrolled.as_secs_f64(), (enrolled - kernel).as_secs_f64()));
        pc.press_power()?;
    }
    let stock = stock_debian(&story, &built)?;
    let (first, later) = (seconds[0], seconds[1]);
    Ok(vec![
        Row::new("first boot, power-on to enrolled (s)", first.0, None),
        Row::new("later boot, power-on to enrolled (s)", later.0, None),
        Row::new("stock Debian 12, kernel start to login (s)", stock, None),
        Row::new(
            "kernel start to enrolled, ratio to stock Debian 12",
            later.1 / stock,
            0.5,
        ),
    ])
}

/// Kernel start to login of the demo's minimal Debian, on the bare emulated PC.
fn stock_debian(story: &Story, built: &Built) -> Result<f64> {
    let dir = story.dir().join("stock");
    std::fs::create_dir_all(&dir)?;
    sparse_copy(&built.machine.join("disk.raw"), &dir.join("drive0.img"))?;
    let mut spec = Spec::new("STOCK");
    spec.drives = vec![Drive {
        bus: Bus::Nvme,
        gib: 4,
    }];
    spec.tpm = false;
    spec.direct = Some(DirectBoot {
        kernel: built.machine.join("vmlinuz"),
        initrd: built.machine.join("initrd.img"),
        // As quiet as Debian's `quiet`, but for the kernel's first line (a notice, level 5): a serial line is slow, and a
        // peer that talks more would look slower than it is.
        cmdline: "root=/dev/nvme0n1 rw console=ttyS0 loglevel=6 systemd.show_status=auto"
            .to_owned(),
    });
    let mut pc = Pc::build(spec, &dir)?;
    pc.power_on()?;
    pc.serial().expect("Linux version", PATIENCE)?;
    let start = Instant::now();
    // The line before the prompt, which itself is no whole line.
    pc.serial().expect("demo-vm ttyS0", PATIENCE)?;
    Ok(start.elapsed().as_secs_f64())
}
