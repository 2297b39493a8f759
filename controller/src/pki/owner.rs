//! The owner's keys: whom devices take orders from.
//!
//! ```text
//! root.HASH.key.pem --delegation--> signing.HASH.key.pem --signs--> challenges, grants
//!   (may be taken away)                                    sealing.key.pem opens what devices send
//! root.HASH.key.pem of the next root
//!   (may be taken away, too)
//! ```
//!
//! | file in `owner/` | what |
//! |---|---|
//! | `owner.json` | which roots there were and are, the delegation: public, and what everything hangs on |
//! | `root.HASH.key.pem` | a root's key, by the first digits of its hash; needed to delegate and to follow |
//! | `signing.HASH.key.pem` | the delegate's key |
//! | `sealing.key.pem` | what only this controller reads |
//!
//! Key files carry their hash in their names, and `owner.json` says which of them count: so that every change is the writing of a new
//! key beside the old ones and then of that one file, and a power cut in between leaves what was.
//!
//! Commands change these files while a controller serves; it reads `owner.json` again every now and then ([`Owner::refresh`]). A lock
//! file keeps the two from writing at the same time.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use jiff::{SignedDuration, Timestamp};
use onboarding::enrol::verifier::CookieKey;
use prost::Message as _;
use protocol::cipher::{Point, SoftwareAgreement};
use protocol::digest::Digest;
use protocol::enrolment::owner::{self, Delegate, MAX_SUCCESSIONS, Pinned};
use protocol::enrolment::wire::{DelegationPayload, OwnerChain, OwnerStatement, SuccessionPayload};
use protocol::keys::SoftwareSigner;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{PkiError, files, issue};

/// Life of a delegation that the controller makes by itself, in days; it is made anew in its last third.
pub const DELEGATION_DAYS: u32 = 365;
/// Longest life of a delegation, in days.
pub const MAX_DELEGATION_DAYS: u32 = 20 * 365;

/// Why the owner's keys could not be used.
#[derive(Debug, Error)]
pub enum OwnerKeyError {
    /// A file, or the making of a key.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A root's key is not where it should be.
    #[error("{what}: the {which} key {hash} is not in {directory}; give its file with {option}")]
    Away {
        /// What was tried.
        what: &'static str,
        /// Which root.
        which: &'static str,
        /// Its hash.
        hash: Digest,
        /// Where it was looked for.
        directory: PathBuf,
        /// Which option names it.
        option: &'static str,
    },
    /// A file holds another key.
    #[error("{path} holds the key {found}; {wanted} is needed")]
    OtherKey {
        /// The file.
        path: PathBuf,
        /// Hash of what is in it.
        found: Digest,
        /// Hash of what should be in it.
        wanted: Digest,
    },
    /// So many roots have followed each other that devices would not take one more.
    #[error(
        "rotating the owner's root: {MAX_SUCCESSIONS} roots have followed each other, and devices take no more; make a new owner and enrol anew"
    )]
    TooOften,
}

/// `owner.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stored {
    epoch: u64,
    root: Digest,
    next: Digest,
    /// Statements, serialised, in hexadecimal; oldest first.
    successions: Vec<String>,
    delegation: String,
}

/// What follows from `owner.json`.
pub struct Authority {
    stored: Stored,
    /// Signs challenges and grants.
    pub signer: SoftwareSigner,
    /// What devices are shown.
    pub chain: OwnerChain,
    /// This controller as devices see it.
    pub delegate: Delegate,
    /// After this time, in seconds since 1970, devices whose clocks are right no longer believe the delegation.
    pub not_after: i64,
}

/// The owner's keys as far as they are here.
pub struct Owner {
    directory: PathBuf,
    sealing: SoftwareAgreement,
    sealing_point: Point,
    cookie: CookieKey,
    authority: RwLock<Arc<Authority>>,
}

/// How the owner stands, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Counts roots.
    pub epoch: u64,
    /// The present root.
    pub root: Digest,
    /// Its key's file, and whether it is there.
    pub root_file: (PathBuf, bool),
    /// The root that may follow.
    pub next: Digest,
    /// Its key's file, and whether it is there.
    pub next_file: (PathBuf, bool),
    /// Number of the delegation.
    pub delegation: u64,
    /// When it ends.
    pub not_after: Timestamp,
}

/// A key out of a file.
struct RootKey {
    signer: SoftwareSigner,
    point: [u8; 65],
}

impl RootKey {
    fn hash(&self) -> Digest {
        owner::root_hash(&self.point)
    }
}

fn key_file(directory: &Path, what: &str, hash: &Digest) -> PathBuf {
    let digits: String = hash.hex().chars().take(16).collect();
    directory.join(format!("{what}.{digits}.key.pem"))
}

fn damaged(path: &Path, reason: impl ToString) -> PkiError {
    PkiError::Damaged {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

/// The key in a file; nothing if there is no such file.
fn read_key(path: &Path) -> Result<Option<RootKey>, PkiError> {
    let Some(pem) = files::read(path)? else {
        return Ok(None);
    };
    let signer = SoftwareSigner::from_pkcs8_pem(&pem).map_err(|error| damaged(path, error))?;
    let point = signer
        .public_point()
        .try_into()
        .map_err(|_| damaged(path, "it is not on P-256"))?;
    Ok(Some(RootKey { signer, point }))
}

/// Makes a key and its file.
fn make_key(directory: &Path, what: &'static str) -> Result<RootKey, PkiError> {
    let pair = issue::generate(what)?;
    let pem = pair.serialize_pem();
    let signer = SoftwareSigner::from_pkcs8_pem(&pem).map_err(|error| damaged(directory, error))?;
    let point = signer
        .public_point()
        .try_into()
        .map_err(|_| damaged(directory, "a new key is not on P-256"))?;
    let key = RootKey { signer, point };
    files::write_secret(&key_file(directory, what, &key.hash()), &pem)?;
    Ok(key)
}

fn delegate_to(
    root: &RootKey,
    epoch: u64,
    serial: u64,
    signing: &[u8; 65],
    not_after: Timestamp,
) -> Result<OwnerStatement, PkiError> {
    let payload = DelegationPayload {
        epoch,
        serial,
        signing_key: signing.to_vec(),
        not_after: not_after.as_second(),
    };
    owner::delegation(&root.signer, &root.point, &payload)
        .map_err(|error| PkiError::Owner(format!("delegating: {error}")))
}

fn end(now: Timestamp, days: u32) -> Timestamp {
    now + SignedDuration::from_hours(24 * i64::from(days.clamp(1, MAX_DELEGATION_DAYS)))
}

impl Stored {
    fn file(directory: &Path) -> PathBuf {
        directory.join("owner.json")
    }

    fn read(directory: &Path) -> Result<Option<Self>, PkiError> {
        let path = Self::file(directory);
        files::read(&path)?
            .map(|text| serde_json::from_str(&text).map_err(|error| damaged(&path, error)))
            .transpose()
    }

    fn write(&self, directory: &Path) -> Result<(), PkiError> {
        let path = Self::file(directory);
        let text = serde_json::to_string_pretty(self).map_err(|error| damaged(&path, error))?;
        files::write(&path, &format!("{text}\n"), 0o644)
    }

    fn delegation(&self, path: &Path) -> Result<(OwnerStatement, DelegationPayload), PkiError> {
        let statement = statement(&self.delegation, path)?;
        let payload = DelegationPayload::decode(statement.payload.as_slice())
            .map_err(|error| damaged(path, error))?;
        Ok((statement, payload))
    }
}

fn statement(text: &str, path: &Path) -> Result<OwnerStatement, PkiError> {
    let bytes = hex::decode(text).map_err(|error| damaged(path, error))?;
    OwnerStatement::decode(bytes.as_slice()).map_err(|error| damaged(path, error))
}

fn written(statement: &OwnerStatement) -> String {
    hex::encode(statement.encode_to_vec())
}

impl Authority {
    fn new(directory: &Path, stored: Stored) -> Result<Self, PkiError> {
        let path = Stored::file(directory);
        let (delegation, payload) = stored.delegation(&path)?;
        let signing = owner::root_hash(&payload.signing_key);
        let file = key_file(directory, "signing", &signing);
        let key = read_key(&file)?
            .filter(|key| key.hash() == signing)
            .ok_or_else(|| damaged(&file, "the key that was delegated to is missing"))?;
        let chain = OwnerChain {
            successions: stored
                .successions
                .iter()
                .map(|text| statement(text, &path))
                .collect::<Result<_, _>>()?,
            delegation: Some(delegation),
        };
        let pinned = Pinned {
            epoch: stored.epoch,
            root: stored.root,
            next: stored.next,
            delegation: payload.serial,
        };
        // What a device would say to it is said here first. A delegation that ended is the devices' to refuse.
        let delegate =
            owner::verify(&chain, &pinned, i64::MIN).map_err(|error| damaged(&path, error))?;
        Ok(Self {
            stored,
            signer: key.signer,
            chain,
            delegate,
            not_after: payload.not_after,
        })
    }

    /// The owner as new images name it.
    #[must_use]
    pub fn pinned(&self) -> Pinned {
        self.delegate.pinned
    }
}

/// Keeps others from writing until it is dropped.
fn lock(directory: &Path) -> Result<File, PkiError> {
    let path = directory.join("lock");
    let fail = |error| PkiError::File(durable::fail("locking", &path)(error));
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(fail)?;
    file.lock().map_err(fail)?;
    Ok(file)
}

impl Owner {
    /// Reads the owner's keys in `directory`, and makes them at the first start.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn open(directory: &Path, now: Timestamp) -> Result<Self, PkiError> {
        files::make_directory(directory)?;
        let _lock = lock(directory)?;
        let path = directory.join("sealing.key.pem");
        let pem = match files::read(&path)? {
            Some(pem) => pem,
            None => {
                let pem = issue::generate("sealing")?.serialize_pem();
                files::write_secret(&path, &pem)?;
                pem
            }
        };
        let sealing =
            SoftwareAgreement::from_pkcs8_pem(&pem).map_err(|error| damaged(&path, error))?;
        let sealing_point = sealing
            .public_point()
            .map_err(|error| damaged(&path, error))?;
        // A fresh one at each start: it must not serve for ever (its nonces are random), and costs the devices that are just then between
        // two flights another try.
        let cookie = CookieKey::random().map_err(|error| PkiError::Owner(error.to_string()))?;
        let stored = match Stored::read(directory)? {
            Some(stored) => stored,
            None => {
                let root = make_key(directory, "root")?;
                let next = make_key(directory, "root")?;
                let signing = make_key(directory, "signing")?;
                let delegation =
                    delegate_to(&root, 1, 1, &signing.point, end(now, DELEGATION_DAYS))?;
                let stored = Stored {
                    epoch: 1,
                    root: root.hash(),
                    next: next.hash(),
                    successions: Vec::new(),
                    delegation: written(&delegation),
                };
                stored.write(directory)?;
                stored
            }
        };
        let owner = Self {
            directory: directory.to_owned(),
            sealing,
            sealing_point,
            cookie,
            authority: RwLock::new(Arc::new(Authority::new(directory, stored)?)),
        };
        owner.renew_if_due(now)?;
        Ok(owner)
    }

    /// What opens devices' requests.
    #[must_use]
    pub fn sealing(&self) -> (&SoftwareAgreement, &Point) {
        (&self.sealing, &self.sealing_point)
    }

    /// What seals the memory of a challenge into it.
    #[must_use]
    pub fn cookie(&self) -> &CookieKey {
        &self.cookie
    }

    /// Who signs, and why devices should believe it.
    #[must_use]
    pub fn authority(&self) -> Arc<Authority> {
        self.authority
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn put(&self, authority: Authority) {
        *self
            .authority
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(authority);
    }

    /// Takes up what a command has changed, and renews the delegation in the last third of its life if the root's key is here.
    ///
    /// # Errors
    /// [`PkiError`]; what was known stays in use then.
    pub fn refresh(&self, now: Timestamp) -> Result<(), PkiError> {
        let _lock = lock(&self.directory)?;
        if let Some(stored) = Stored::read(&self.directory)?
            && stored != self.authority().stored
        {
            self.put(Authority::new(&self.directory, stored)?);
        }
        self.renew_if_due(now)
    }

    fn renew_if_due(&self, now: Timestamp) -> Result<(), PkiError> {
        let left = self.authority().not_after - now.as_second();
        if left * 3 > i64::from(DELEGATION_DAYS) * 24 * 3600 {
            return Ok(());
        }
        let root = self.authority().stored.root;
        match read_key(&key_file(&self.directory, "root", &root))? {
            Some(key) => self.renew(&key, end(now, DELEGATION_DAYS)),
            None => {
                tracing::warn!(
                    ends = self.authority().not_after, root = %root,
                    "the owner's delegation to this controller ends, in seconds since 1970, and the root's key is not here: \
                     run `skerry-controller owner delegate --root-key FILE`"
                );
                Ok(())
            }
        }
    }

    fn renew(&self, root: &RootKey, not_after: Timestamp) -> Result<(), PkiError> {
        let mut stored = self.authority().stored.clone();
        let (_, before) = stored.delegation(&Stored::file(&self.directory))?;
        let signing: [u8; 65] = before
            .signing_key
            .try_into()
            .map_err(|_| damaged(&self.directory, "the delegate's key is no point"))?;
        let delegation = delegate_to(root, stored.epoch, before.serial + 1, &signing, not_after)?;
        stored.delegation = written(&delegation);
        self.change(stored)
    }

    /// Checks what is about to be written before it is, and puts it into use.
    fn change(&self, stored: Stored) -> Result<(), PkiError> {
        let authority = Authority::new(&self.directory, stored)?;
        authority.stored.write(&self.directory)?;
        self.put(authority);
        Ok(())
    }

    fn root_key(
        &self,
        what: &'static str,
        which: &'static str,
        option: &'static str,
        wanted: Digest,
        file: Option<&Path>,
    ) -> Result<RootKey, OwnerKeyError> {
        let own = key_file(&self.directory, "root", &wanted);
        let path = file.unwrap_or(&own);
        match read_key(path)? {
            Some(key) if key.hash() == wanted => Ok(key),
            Some(key) => Err(OwnerKeyError::OtherKey {
                path: path.to_owned(),
                found: key.hash(),
                wanted,
            }),
            None => Err(OwnerKeyError::Away {
                what,
                which,
                hash: wanted,
                directory: path.parent().unwrap_or(path).to_owned(),
                option,
            }),
        }
    }

    /// Delegates to this controller anew, until `days` from now. `root_key` is the present root's key, if it was taken away.
    ///
    /// # Errors
    /// [`OwnerKeyError`]; nothing is changed then.
    pub fn delegate(
        &self,
        root_key: Option<&Path>,
        days: u32,
        now: Timestamp,
    ) -> Result<(), OwnerKeyError> {
        let _lock = lock(&self.directory)?;
        let root = self.authority().stored.root;
        let key = self.root_key("delegating", "root", "--root-key", root, root_key)?;
        Ok(self.renew(&key, end(now, days))?)
    }

    /// Withdraws what was delegated: a new signing key is made and delegated to under a higher number, so that devices that have seen it
    /// believe no statement of the old key any more.
    ///
    /// # Errors
    /// [`OwnerKeyError`]; nothing is changed then.
    pub fn withdraw(
        &self,
        root_key: Option<&Path>,
        days: u32,
        now: Timestamp,
    ) -> Result<(), OwnerKeyError> {
        let _lock = lock(&self.directory)?;
        let mut stored = self.authority().stored.clone();
        let key = self.root_key("withdrawing", "root", "--root-key", stored.root, root_key)?;
        let (_, before) = stored.delegation(&Stored::file(&self.directory))?;
        let signing = make_key(&self.directory, "signing")?;
        let delegation = delegate_to(
            &key,
            stored.epoch,
            before.serial + 1,
            &signing.point,
            end(now, days),
        )?;
        stored.delegation = written(&delegation);
        self.change(stored)?;
        let old = owner::root_hash(&before.signing_key);
        durable::remove(&key_file(&self.directory, "signing", &old)).map_err(PkiError::File)?;
        Ok(())
    }

    /// Lets the next root take over, and makes the one after it. `next_key` is the next root's key, if it was taken away.
    ///
    /// # Errors
    /// [`OwnerKeyError`]; nothing is changed then.
    pub fn rotate(
        &self,
        next_key: Option<&Path>,
        days: u32,
        now: Timestamp,
    ) -> Result<(), OwnerKeyError> {
        let _lock = lock(&self.directory)?;
        let mut stored = self.authority().stored.clone();
        if stored.successions.len() >= MAX_SUCCESSIONS {
            return Err(OwnerKeyError::TooOften);
        }
        let root = self.root_key(
            "rotating the owner's root",
            "next root",
            "--next-key",
            stored.next,
            next_key,
        )?;
        let (_, before) = stored.delegation(&Stored::file(&self.directory))?;
        let signing: [u8; 65] = before
            .signing_key
            .try_into()
            .map_err(|_| damaged(&self.directory, "the delegate's key is no point"))?;
        let next = make_key(&self.directory, "root")?;
        let payload = SuccessionPayload {
            epoch: stored.epoch + 1,
            predecessor: stored.root.bytes().to_vec(),
            next: next.hash().bytes().to_vec(),
        };
        let succession = owner::succession(&root.signer, &root.point, &payload)
            .map_err(|error| PkiError::Owner(format!("rotating: {error}")))?;
        let delegation = delegate_to(&root, payload.epoch, 1, &signing, end(now, days))?;
        stored.epoch = payload.epoch;
        stored.root = root.hash();
        stored.next = next.hash();
        stored.successions.push(written(&succession));
        stored.delegation = written(&delegation);
        Ok(self.change(stored)?)
    }

    /// How the owner stands.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn standing(&self) -> Result<Standing, PkiError> {
        let authority = self.authority();
        let file = |hash: &Digest| {
            let path = key_file(&self.directory, "root", hash);
            let there = path.exists();
            (path, there)
        };
        let pinned = authority.pinned();
        Ok(Standing {
            epoch: pinned.epoch,
            root: pinned.root,
            root_file: file(&pinned.root),
            next: pinned.next,
            next_file: file(&pinned.next),
            delegation: pinned.delegation,
            not_after: Timestamp::from_second(authority.not_after)
                .map_err(|error| damaged(&self.directory, error))?,
        })
    }
}

#[cfg(test)]
mod tests;
