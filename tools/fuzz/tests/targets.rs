//! Every target, cheaply: its seeds, their prefixes, and some hundred to some thousand changes of them, the same ones in
//! the same order each time. How many of them there is time for differs; that there are enough does not.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fuzz::Target;

#[global_allocator]
static METER: fuzz::meter::Meter = fuzz::meter::Meter;

/// How long a target is fed with changes, if it has had enough by then; seeds and prefixes come on top.
const PATIENCE: Duration = Duration::from_millis(200);
/// Changed inputs at least, however long they take.
const ENOUGH: usize = 300;
/// Prefixes of one seed at most.
const PREFIXES: usize = 256;
/// Changed inputs at most.
const CHANGES: usize = 4000;
/// Longest input that changes make.
const LONGEST: usize = 64 << 10;
/// A single input that takes longer hangs, as far as anybody who waits is concerned.
const HANG: Duration = Duration::from_secs(10);

/// Marsaglia's xorshift of 64 bits: enough for choosing bytes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Lengths and numbers at which something ends.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    i64::MAX as u64,
    u64::MAX,
];

/// Changes an input once or a few times. `other` is some other seed to take pieces from.
fn change(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(3) {
        let at = random.below(input.len());
        match random.below(9) {
            0 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            1 => {
                let value = [0, 0xff, 0x7f][random.below(3)];
                if let Some(byte) = input.get_mut(at) {
                    *byte = value;
                }
            }
            2 => {
                let value = random.next() as u8;
                if let Some(byte) = input.get_mut(at) {
                    *byte = value;
                }
            }
            3 | 4 => {
                // A number over what is there, in one byte order or the other.
                let number = NUMBERS[random.below(NUMBERS.len())];
                let width = 1 << random.below(4);
                let mut bytes = number.to_le_bytes()[..width].to_vec();
                if random.below(2) == 0 {
                    bytes.reverse();
                }
                let end = (at + width).min(input.len());
                input.splice(at.min(end)..end, bytes);
            }
            5 => {
                // The number of bytes that follow, or nearly.
                let rest = (input.len() - at.min(input.len())) as u64;
                let length = rest.wrapping_add(random.below(5) as u64).wrapping_sub(2);
                let width = 1 << random.below(4);
                let bytes = length.to_le_bytes()[..width].to_vec();
                input.splice(at..at, bytes);
            }
            6 => {
                // A piece of the other seed, in place of one or between.
                let from = random.below(other.len());
                let to = other.len().min(from + random.below(64));
                let end = if random.below(2) == 0 {
                    at
                } else {
                    input.len().min(at + random.below(64))
                };
                input.splice(at..end, other[from.min(to)..to].iter().copied());
            }
            7 => {
                let end = input.len().min(at + random.below(16));
                input.drain(at..end);
            }
            _ => {
                let piece = input[at..input.len().min(at + random.below(64))].to_vec();
                input.splice(at..at, piece);
            }
        }
    }
    input.truncate(LONGEST);
}

/// Feeds one input; the input in hex, if something does not hold.
fn feed(target: &Target, input: &[u8]) -> Result<(), String> {
    // What ends the whole process (a stack that is full, say) leaves no other trace of its input.
    if let Ok(file) = std::env::var("SKERRY_FUZZ_KEEP") {
        std::fs::write(&file, input).map_err(|error| format!("writing {file}: {error}"))?;
    }
    let begun = Instant::now();
    let held = catch_unwind(AssertUnwindSafe(|| target.check(input)));
    let took = begun.elapsed();
    if held.is_err() {
        return Err(format!(
            "{}: fails with {}",
            target.name,
            hex::encode(input)
        ));
    }
    if took > HANG {
        return Err(format!(
            "{}: takes {took:?} with {}",
            target.name,
            hex::encode(input)
        ));
    }
    Ok(())
}

/// How many inputs a target was fed.
#[derive(Clone, Copy, Default)]
struct Fed {
    /// Seeds and their prefixes.
    given: usize,
    /// Changes of seeds.
    changed: usize,
}

fn exercise(target: &Target) -> Result<Fed, String> {
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{} has no seed", target.name);
    let mut fed = Fed::default();
    for seed in &seeds {
        feed(target, seed)?;
        fed.given += 1;
        let step = seed.len().div_ceil(PREFIXES).max(1);
        for length in (0..seed.len()).step_by(step) {
            feed(target, &seed[..length])?;
            fed.given += 1;
        }
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let begun = Instant::now();
    for number in 0..CHANGES {
        if number >= ENOUGH && begun.elapsed() > PATIENCE {
            break;
        }
        let mut input = seeds[number % seeds.len()].clone();
        let other = &seeds[random.below(seeds.len())];
        change(&mut input, other, &mut random);
        feed(target, &input)?;
        fed.changed += 1;
    }
    assert!(fed.changed >= ENOUGH);
    Ok(fed)
}

#[test]
fn nothing_from_outside_brings_a_parser_down() {
    let targets: Vec<&Target> = match std::env::var("SKERRY_FUZZ_TARGET") {
        Ok(name) => vec![fuzz::find(&name).unwrap()],
        Err(_) => fuzz::targets().collect(),
    };
    let next = AtomicUsize::new(0);
    let (done, failures) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let begun = Instant::now();
    let threads = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begun = Instant::now();
                    match exercise(target) {
                        Ok(fed) => {
                            println!(
                                "{:<24} {:>6} seeds and prefixes, {:>6} changes in {:?}",
                                target.name,
                                fed.given,
                                fed.changed,
                                begun.elapsed()
                            );
                            done.lock().unwrap().push((target.name, fed));
                        }
                        Err(failure) => failures.lock().unwrap().push(failure),
                    }
                }
            });
        }
    });
    let done = done.into_inner().unwrap();
    if let Some((name, least)) = done.iter().min_by_key(|(_, fed)| fed.changed) {
        // Past what the test runner holds back: how much was tried is worth a line each time.
        let _ = writeln!(
            std::io::stderr(),
            "{} targets: {} seeds and prefixes, {} changes of them in {:.1} s; fewest changes: {name} with {}",
            done.len(),
            done.iter().map(|(_, fed)| fed.given).sum::<usize>(),
            done.iter().map(|(_, fed)| fed.changed).sum::<usize>(),
            begun.elapsed().as_secs_f64(),
            least.changed
        );
    }
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// After the messages in `seeds/enrolment` were recorded anew.
#[test]
#[ignore = "writes seeds/enrolment/sealed-*"]
fn seal_the_recordings() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/enrolment");
    for (name, bytes) in fuzz::seal::recordings() {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

#[test]
fn names_are_unique_and_fit_on_a_command_line() {
    let mut names: Vec<&str> = fuzz::targets().map(|target| target.name).collect();
    for name in &names {
        assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        );
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}
