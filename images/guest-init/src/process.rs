//! The container's process: found in the image, started with just the rights that a container has.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use guest_api::ContainerSpec;
use guest_api::confinement::CAPABILITIES;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{Gid, Pid, Uid, fchown, setgid, setgroups, setsid, setuid};

use crate::{Error, files, mounts};

/// Files that a process may have open, soft and hard: what container runtimes give.
const OPEN_FILES: u64 = 1_048_576;

/// No kernel has capabilities beyond this; beyond those that it has, dropping is an error that says so.
const MAX_CAPABILITY: u32 = 63;

/// Starts the process in a PID namespace of its own, where it is number 1. Returns its number in ours.
pub fn start(spec: &ContainerSpec, output: File) -> Result<Pid, Error> {
    let Some((program, arguments)) = spec.args.split_first() else {
        return Err(Error::Spec("names no program".to_owned()));
    };
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let env = files::environment(spec, &passwd);
    std::fs::create_dir_all(&spec.cwd).map_err(Error::system("make directory", &spec.cwd))?;
    let path = env
        .iter()
        .rev()
        .find_map(|e| e.strip_prefix("PATH="))
        .unwrap_or("");
    let found =
        resolve(program, path, &spec.cwd, &is_executable).map_err(|reason| Error::Program {
            program: program.clone(),
            reason,
        })?;

    // The process opens its own output again through /dev/stdout; the device is root's otherwise (runc does the same).
    fchown(
        &output,
        Some(Uid::from_raw(spec.uid)),
        Some(Gid::from_raw(spec.gid)),
    )
    .map_err(Error::system("give away", "the output console"))?;
    let copy = output
        .try_clone()
        .map_err(Error::system("duplicate", "the output console"))?;
    unshare(CloneFlags::CLONE_NEWPID).map_err(Error::system("make", "a PID namespace"))?;

    let mut command = Command::new(&found);
    command
        .arg0(program)
        .args(arguments)
        .env_clear()
        .envs(env.iter().filter_map(|e| e.split_once('=')))
        .current_dir(&spec.cwd)
        .stdin(Stdio::null())
        .stdout(Stdio::from(output))
        .stderr(Stdio::from(copy));
    let (uid, gid) = (Uid::from_raw(spec.uid), Gid::from_raw(spec.gid));
    let groups: Vec<Gid> = spec
        .additional_gids
        .iter()
        .copied()
        .map(Gid::from_raw)
        .collect();
    // SAFETY: this program has one thread, so the child may do what the parent may: no lock can be held by a thread that
    // is not there any more.
    unsafe { command.pre_exec(move || enter(uid, gid, &groups)) };
    let child = command.spawn().map_err(|e| Error::Program {
        program: program.clone(),
        reason: e.to_string(),
    })?;
    Ok(Pid::from_raw(child.id() as i32))
}

/// In the child, before the program: its view of the system, then its rights.
fn enter(uid: Uid, gid: Gid, groups: &[Gid]) -> io::Result<()> {
    setsid()?;
    mounts::apply(&mounts::proc()).map_err(io::Error::other)?;
    mounts::mask()?;
    mounts::make_read_only()?;
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)?;
    drop_capabilities();
    setgroups(groups)?;
    setgid(gid)?;
    setuid(uid)?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// Takes capabilities from the bounding set, so that root in the container has only [`CAPABILITIES`] after its exec.
fn drop_capabilities() {
    let kept = |number: &u32| CAPABILITIES.iter().any(|kept| kept.number == *number);
    for capability in (0..=MAX_CAPABILITY).filter(|number| !kept(number)) {
        // SAFETY: PR_CAPBSET_DROP takes one number and touches no memory. It fails for capabilities that this kernel does
        // not know, which nobody can have.
        unsafe {
            libc::prctl(
                libc::PR_CAPBSET_DROP,
                libc::c_ulong::from(capability),
                0,
                0,
                0,
            )
        };
    }
}

/// The path of `program`, looked for as execvp(3) does, but with words for what is wrong.
fn resolve(
    program: &str,
    path: &str,
    cwd: &str,
    executable: &dyn Fn(&str) -> Option<bool>,
) -> Result<String, String> {
    let candidates: Vec<String> = if program.starts_with('/') {
        vec![program.to_owned()]
    } else if program.contains('/') {
        vec![format!("{}/{program}", cwd.trim_end_matches('/'))]
    } else {
        let directories = path.split(':').filter(|d| d.starts_with('/'));
        directories
            .map(|directory| format!("{}/{program}", directory.trim_end_matches('/')))
            .collect()
    };
    let mut seen = None;
    for candidate in candidates {
        match executable(&candidate) {
            Some(true) => return Ok(candidate),
            Some(false) => seen = seen.or(Some(candidate)),
            None => {}
        }
    }
    Err(match seen {
        Some(found) => format!("{found} is not an executable file"),
        None if program.contains('/') => "there is no such file in the image".to_owned(),
        None => format!("there is no such file in the image's PATH, {path}"),
    })
}

fn is_executable(path: &str) -> Option<bool> {
    let about = std::fs::metadata(Path::new(path)).ok()?;
    Some(about.is_file() && about.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_would() {
        let files = [
            ("/bin/sh", true),
            ("/usr/bin/web", true),
            ("/bin/web", false),
            ("/srv/run", true),
            ("/run", true),
        ];
        let look = |path: &str| files.iter().find(|(p, _)| *p == path).map(|(_, x)| *x);
        for (program, path, cwd, wanted) in [
            ("/bin/sh", "", "/", Ok("/bin/sh")),
            ("sh", "/usr/bin:/bin/", "/", Ok("/bin/sh")),
            ("web", "/bin:/usr/bin", "/", Ok("/usr/bin/web")),
            ("./run", "/bin", "/srv/", Ok("/srv/./run")),
            (
                "web",
                "/bin",
                "/",
                Err("/bin/web is not an executable file"),
            ),
            (
                "sh",
                "bin:",
                "/",
                Err("there is no such file in the image's PATH, bin:"),
            ),
            (
                "/bin/none",
                "/bin",
                "/",
                Err("there is no such file in the image"),
            ),
        ] {
            let files_here = |p: &str| look(&p.replace("/./", "/"));
            let found = resolve(program, path, cwd, &files_here);
            assert_eq!(
                found.as_deref().map_err(String::as_str),
                wanted,
                "{program} in {path}"
            );
        }
    }
}
