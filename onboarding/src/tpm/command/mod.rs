//! The commands, a file each or a few of one kind in a file, and what they share: framing, authorization, retries.
//!
//! A command on the wire (TCG TPM 2.0 Library, part 1, 18):
//!
//! ```text
//! tag u16 | length u32 | code u32 | handles u32... | [authorizations' length u32, authorizations] | parameters
//! tag u16 | length u32 | response code u32 | [handle u32] | [parameters' length u32] parameters | [authorizations]
//! ```
//!
//! An answer is taken apart strictly: its tag must be the command's, its lengths must add up, its authorization area
//! must have as many entries as the command's, the code of a salted session must fit, and every parser must use up its
//! parameters.

mod attestation;
mod capability;
mod credential;
mod ecdh;
mod key;
mod nv;
mod pcr;
mod random;
mod salted;
mod session;
mod sign;
mod startup;

use std::fmt;
use std::sync::PoisonError;
use std::thread;

pub use attestation::Attested;
pub use capability::{Capabilities, Properties};
pub use key::{KeyBlob, Object};
pub use nv::{NvAttributes, NvPublic};
pub use pcr::PcrSelection;
pub use salted::Salted;
pub use session::Session;
pub use startup::Startup;

use salted::{Exchange, Protect};

use super::rc::ResponseCode;
use super::{Tpm, TpmError};
use crate::wire::{Name, Reader, WireError, Writer};

/// TPM_ST_NO_SESSIONS and TPM_ST_SESSIONS.
const TAG_PLAIN: u16 = 0x8001;
const TAG_AUTHORIZED: u16 = 0x8002;
/// TPM_RS_PW: the "session" of a password authorization.
const PASSWORD_SESSION: u32 = 0x4000_0009;
/// TPMA_SESSION: continueSession.
const CONTINUE_SESSION: u8 = 1;
/// Longest digest that any TPM algorithm has: SHA-512.
const MAX_DIGEST: usize = 64;
/// Longest of the other sized buffers that are read and kept or skipped.
const MAX_BUFFER: usize = 2048;

/// A command's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CommandCode(pub u32);

impl CommandCode {
    const NV_UNDEFINE_SPACE: Self = Self(0x122);
    const NV_DEFINE_SPACE: Self = Self(0x12a);
    const NV_WRITE: Self = Self(0x137);
    const NV_WRITE_LOCK: Self = Self(0x138);
    const EVICT_CONTROL: Self = Self(0x120);
    pub(crate) const CREATE_PRIMARY: Self = Self(0x131);
    const STARTUP: Self = Self(0x144);
    const SHUTDOWN: Self = Self(0x145);
    const ACTIVATE_CREDENTIAL: Self = Self(0x147);
    const CERTIFY: Self = Self(0x148);
    const NV_READ: Self = Self(0x14e);
    const POLICY_SECRET: Self = Self(0x151);
    const CREATE: Self = Self(0x153);
    const ECDH_ZGEN: Self = Self(0x154);
    const LOAD: Self = Self(0x157);
    const QUOTE: Self = Self(0x158);
    const SIGN: Self = Self(0x15d);
    const FLUSH_CONTEXT: Self = Self(0x165);
    const MAKE_CREDENTIAL: Self = Self(0x168);
    const NV_READ_PUBLIC: Self = Self(0x169);
    const READ_PUBLIC: Self = Self(0x173);
    const POLICY_COMMAND_CODE: Self = Self(0x16c);
    const POLICY_OR: Self = Self(0x171);
    const START_AUTH_SESSION: Self = Self(0x176);
    const GET_CAPABILITY: Self = Self(0x17a);
    const GET_RANDOM: Self = Self(0x17b);
    const PCR_READ: Self = Self(0x17e);
    const PCR_EXTEND: Self = Self(0x182);
}

impl fmt::Display for CommandCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::NV_UNDEFINE_SPACE => "NV_UndefineSpace",
            Self::NV_DEFINE_SPACE => "NV_DefineSpace",
            Self::NV_WRITE => "NV_Write",
            Self::NV_WRITE_LOCK => "NV_WriteLock",
            Self::CERTIFY => "Certify",
            Self::EVICT_CONTROL => "EvictControl",
            Self::CREATE_PRIMARY => "CreatePrimary",
            Self::STARTUP => "Startup",
            Self::SHUTDOWN => "Shutdown",
            Self::ACTIVATE_CREDENTIAL => "ActivateCredential",
            Self::NV_READ => "NV_Read",
            Self::POLICY_SECRET => "PolicySecret",
            Self::CREATE => "Create",
            Self::ECDH_ZGEN => "ECDH_ZGen",
            Self::LOAD => "Load",
            Self::QUOTE => "Quote",
            Self::SIGN => "Sign",
            Self::FLUSH_CONTEXT => "FlushContext",
            Self::MAKE_CREDENTIAL => "MakeCredential",
            Self::NV_READ_PUBLIC => "NV_ReadPublic",
            Self::READ_PUBLIC => "ReadPublic",
            Self::POLICY_COMMAND_CODE => "PolicyCommandCode",
            Self::POLICY_OR => "PolicyOR",
            Self::START_AUTH_SESSION => "StartAuthSession",
            Self::GET_CAPABILITY => "GetCapability",
            Self::GET_RANDOM => "GetRandom",
            Self::PCR_READ => "PCR_Read",
            Self::PCR_EXTEND => "PCR_Extend",
            Self(other) => return write!(f, "{other:#x}"),
        })
    }
}

/// A handle: an object, a session, an NV index, a PCR or a hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Handle(pub u32);

impl Handle {
    /// TPM_RH_NULL: nothing.
    pub const NULL: Self = Self(0x4000_0007);
}

/// A hierarchy of keys, each with a seed of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hierarchy {
    /// The owner's: our keys.
    Owner,
    /// The TPM's maker's: the endorsement keys.
    Endorsement,
}

impl Hierarchy {
    fn handle(self) -> Handle {
        Handle(match self {
            Self::Owner => 0x4000_0001,
            Self::Endorsement => 0x4000_000b,
        })
    }
}

/// How a command is authorized for one of its handles.
#[derive(Debug, Clone, Copy)]
enum Auth<'a> {
    /// By the empty password.
    Empty,
    /// By a policy session without a secret, whose policy is satisfied; it stays loaded.
    Policy(&'a Session),
    /// By a salted session; it stays loaded. As policy session its policy is satisfied, else it stands for the empty password.
    Salted(&'a Salted, Protect),
}

/// A command about to be sent.
struct Command<'a> {
    code: CommandCode,
    /// Each with the name of what it names, if that is not the handle itself (part 1, 16).
    handles: Vec<(Handle, Option<Name>)>,
    auths: Vec<Auth<'a>>,
    parameters: Writer,
    answers_handle: bool,
}

/// A command in bytes, and what the salted sessions in it need for reading the answer.
struct Framed<'a> {
    message: Vec<u8>,
    exchanges: Vec<Option<Exchange<'a>>>,
}

impl<'a> Command<'a> {
    fn new(code: CommandCode) -> Self {
        Self {
            code,
            handles: vec![],
            auths: vec![],
            parameters: Writer::new(),
            answers_handle: false,
        }
    }

    /// Adds a handle that needs no authorization.
    fn on(mut self, handle: Handle) -> Self {
        self.handles.push((handle, None));
        self
    }

    /// Adds a handle that needs no authorization, and the name of what it names.
    fn on_named(mut self, handle: Handle, name: &Name) -> Self {
        self.handles.push((handle, Some(name.clone())));
        self
    }

    /// Adds a handle and its authorization. Handles with authorization come before those without (part 1, 18.7).
    fn with(mut self, handle: Handle, auth: Auth<'a>) -> Self {
        self.handles.push((handle, None));
        self.auths.push(auth);
        self
    }

    /// Adds an object and its authorization.
    fn with_object(mut self, object: &Object, auth: Auth<'a>) -> Self {
        self.handles
            .push((object.handle(), Some(object.name().clone())));
        self.auths.push(auth);
        self
    }

    /// Writes parameters.
    fn parameters(mut self, write: impl FnOnce(&mut Writer)) -> Self {
        write(&mut self.parameters);
        self
    }

    /// Says that the answer brings a handle.
    fn answering_handle(mut self) -> Self {
        self.answers_handle = true;
        self
    }

    fn tag(&self) -> u16 {
        if self.auths.is_empty() {
            TAG_PLAIN
        } else {
            TAG_AUTHORIZED
        }
    }

    fn first_handle(&self) -> Option<u32> {
        self.handles.first().map(|(handle, _)| handle.0)
    }

    /// The names of all handles, one after the other.
    fn names(&self) -> Vec<u8> {
        let mut names = vec![];
        for (handle, name) in &self.handles {
            match name {
                Some(name) => names.extend_from_slice(&name.0),
                None => names.extend_from_slice(&handle.0.to_be_bytes()),
            }
        }
        names
    }

    /// The command in bytes. With a salted session they are others each time.
    fn frame(&self) -> Result<Framed<'a>, TpmError> {
        let mut parameters = self.parameters.as_slice().to_vec();
        let mut exchanges = vec![];
        for auth in &self.auths {
            exchanges.push(match auth {
                Auth::Empty | Auth::Policy(_) => None,
                Auth::Salted(session, protect) => {
                    let exchange = session.exchange(self.code, *protect)?;
                    exchange.encrypt(&mut parameters);
                    Some(exchange)
                }
            });
        }
        let mut body = Writer::new();
        for (handle, _) in &self.handles {
            body.u32(handle.0);
        }
        if !self.auths.is_empty() {
            let mut area = Writer::new();
            for (auth, exchange) in self.auths.iter().zip(&exchanges) {
                match (auth, exchange) {
                    // There is no session key and no authorization value to make a code with (part 1, 19.6.13).
                    (Auth::Policy(session), _) => {
                        area.u32(session.handle().0)
                            .sized(&[])
                            .u8(CONTINUE_SESSION)
                            .sized(&[]);
                    }
                    (_, None) => {
                        area.u32(PASSWORD_SESSION).sized(&[]).u8(0).sized(&[]);
                    }
                    (_, Some(exchange)) => {
                        exchange.write(self.code, &self.names(), &parameters, &mut area);
                    }
                }
            }
            body.u32(length(area.as_slice())).bytes(area.as_slice());
        }
        body.bytes(&parameters);

        let mut message = Writer::new();
        message
            .u16(self.tag())
            .u32(length(body.as_slice()).saturating_add(10))
            .u32(self.code.0)
            .bytes(body.as_slice());
        Ok(Framed {
            message: message.into_bytes(),
            exchanges,
        })
    }
}

/// Nothing here comes near 4 GiB; a length that did would be refused by the transport.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// An authorization in an answer.
#[derive(Debug, PartialEq, Eq)]
struct AnswerAuth<'a> {
    nonce: &'a [u8],
    attributes: u8,
    code: &'a [u8],
}

/// An answer taken apart.
#[derive(Debug, PartialEq, Eq)]
enum Answer<'a> {
    Done {
        handle: Option<Handle>,
        parameters: &'a [u8],
        auths: Vec<AnswerAuth<'a>>,
    },
    Refused(ResponseCode),
}

/// Takes an answer apart. `tag`, `auths` and `handle` say what the command makes the answer look like.
fn take_apart(bytes: &[u8], tag: u16, auths: usize, handle: bool) -> Result<Answer<'_>, WireError> {
    let mut reader = Reader::new(bytes);
    let seen_tag = reader.be16("tag")?;
    let size = reader.be32("length")?;
    if usize::try_from(size) != Ok(bytes.len()) {
        return Err(WireError::Value {
            field: "length",
            value: size.into(),
        });
    }
    let code = reader.be32("response code")?;
    if code != 0 {
        reader.end("refusal")?;
        return Ok(Answer::Refused(ResponseCode(code)));
    }
    if seen_tag != tag {
        return Err(WireError::Value {
            field: "tag",
            value: seen_tag.into(),
        });
    }
    let handle = match handle {
        true => Some(Handle(reader.be32("handle")?)),
        false => None,
    };
    if auths == 0 {
        let parameters = reader.bytes("parameters", reader.left())?;
        return Ok(Answer::Done {
            handle,
            parameters,
            auths: vec![],
        });
    }
    let size = reader.be32("parameters' length")?;
    let parameters = reader.bytes("parameters", usize::try_from(size).unwrap_or(usize::MAX))?;
    let mut seen = Vec::with_capacity(auths);
    for _ in 0..auths {
        seen.push(AnswerAuth {
            nonce: reader.sized("authorization's nonce", MAX_DIGEST)?,
            attributes: reader.u8("authorization's attributes")?,
            code: reader.sized("authorization's code", MAX_DIGEST)?,
        });
    }
    reader.end("answer")?;
    Ok(Answer::Done {
        handle,
        parameters,
        auths: seen,
    })
}

impl Tpm {
    /// Sends a command, again while the TPM is busy, and has `parse` read its answer's handle and parameters.
    fn run<T>(
        &self,
        command: &Command<'_>,
        parse: impl FnOnce(Option<Handle>, &mut Reader<'_>) -> Result<T, WireError>,
    ) -> Result<T, TpmError> {
        let done = self.carry_out(command, parse);
        // Without the TPM's own word that it did nothing, what the handle in the answer names may be there.
        if command.answers_handle && done.as_ref().is_err_and(|error| error.code().is_none()) {
            self.tidiness().untidy = true;
        }
        done
    }

    fn carry_out<T>(
        &self,
        command: &Command<'_>,
        parse: impl FnOnce(Option<Handle>, &mut Reader<'_>) -> Result<T, WireError>,
    ) -> Result<T, TpmError> {
        let (code, first) = (command.code, command.first_handle());
        let malformed = |source| TpmError::Malformed {
            command: code,
            handle: first,
            source,
        };
        let mut attempt = 0_u32;
        loop {
            attempt += 1;
            let Framed { message, exchanges } = command.frame()?;
            if message.len() > super::MAX_MESSAGE {
                return Err(TpmError::TooLong {
                    command: code,
                    what: "the command",
                    size: message.len(),
                    limit: super::MAX_MESSAGE,
                });
            }
            let bytes = self
                .transport
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .exchange(&message)
                .map_err(|source| TpmError::Transport {
                    command: code,
                    handle: first,
                    source,
                })?;
            let answer = take_apart(
                &bytes,
                command.tag(),
                command.auths.len(),
                command.answers_handle,
            )
            .map_err(malformed)?;
            match answer {
                Answer::Refused(refusal) => match refusal.retry_after(attempt) {
                    Some(wait) => {
                        tracing::debug!("TPM command {code}: {refusal}; again in {wait:?}");
                        thread::sleep(wait);
                    }
                    None => {
                        return Err(TpmError::Refused {
                            command: code,
                            handle: first,
                            code: refusal,
                        });
                    }
                },
                Answer::Done {
                    handle,
                    parameters,
                    auths,
                } => {
                    let mut clear = parameters.to_vec();
                    for (exchange, auth) in exchanges.into_iter().zip(&auths) {
                        let fits = exchange.is_none_or(|exchange| {
                            exchange.answered(code, auth, parameters, &mut clear)
                        });
                        if !fits {
                            return Err(TpmError::Tampered {
                                command: code,
                                handle: first,
                            });
                        }
                    }
                    let mut reader = Reader::new(&clear);
                    return parse(handle, &mut reader)
                        .and_then(|value| reader.end("parameters").map(|()| value))
                        .map_err(malformed);
                }
            }
        }
    }

    /// Sends a command whose answer has no parameters.
    fn run_silent(&self, command: &Command<'_>) -> Result<(), TpmError> {
        self.run(command, |_, _| Ok(()))
    }
}

/// A handle that `answering_handle` promised.
fn promised(handle: Option<Handle>) -> Result<Handle, WireError> {
    handle.ok_or(WireError::Short {
        field: "handle",
        needed: 4,
        left: 0,
    })
}

/// Refuses a value that is too long for its place in a command.
fn fits(
    command: CommandCode,
    what: &'static str,
    value: &[u8],
    limit: usize,
) -> Result<(), TpmError> {
    if value.len() <= limit {
        return Ok(());
    }
    Err(TpmError::TooLong {
        command,
        what,
        size: value.len(),
        limit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK_PLAIN: &[u8] = &[0x80, 0x01, 0, 0, 0, 12, 0, 0, 0, 0, 7, 8];
    const OK_AUTHORIZED: &[u8] = &[
        0x80, 0x02, 0, 0, 0, 25, 0, 0, 0, 0, 0x80, 0, 0, 1, 0, 0, 0, 2, 7, 8, 0, 0, 1, 0, 0,
    ];

    #[test]
    fn answers_are_taken_apart() {
        assert_eq!(
            take_apart(OK_PLAIN, TAG_PLAIN, 0, false),
            Ok(Answer::Done {
                handle: None,
                parameters: &[7, 8],
                auths: vec![]
            })
        );
        assert_eq!(
            take_apart(OK_AUTHORIZED, TAG_AUTHORIZED, 1, true),
            Ok(Answer::Done {
                handle: Some(Handle(0x8000_0001)),
                parameters: &[7, 8],
                auths: vec![AnswerAuth {
                    nonce: &[],
                    attributes: 1,
                    code: &[]
                }]
            })
        );
        let refusal = [0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x09, 0x21];
        assert_eq!(
            take_apart(&refusal, TAG_AUTHORIZED, 1, false),
            Ok(Answer::Refused(ResponseCode(0x921)))
        );
    }

    #[test]
    fn answers_that_do_not_add_up_are_refused() {
        for length in 0..OK_AUTHORIZED.len() {
            assert!(
                take_apart(&OK_AUTHORIZED[..length], TAG_AUTHORIZED, 1, true).is_err(),
                "cut to {length}"
            );
        }
        // The tag of a command without authorizations, one authorization too few, one too many.
        assert!(take_apart(OK_AUTHORIZED, TAG_PLAIN, 0, true).is_err());
        assert!(take_apart(OK_AUTHORIZED, TAG_AUTHORIZED, 2, true).is_err());
        assert!(take_apart(OK_PLAIN, TAG_AUTHORIZED, 1, false).is_err());
        // A parameter area longer than the answer.
        let mut long = OK_AUTHORIZED.to_vec();
        long[14] = 0xff;
        assert!(take_apart(&long, TAG_AUTHORIZED, 1, true).is_err());
        // A refusal with something behind it.
        assert!(
            take_apart(
                &[0x80, 0x01, 0, 0, 0, 11, 0, 0, 9, 0x21, 0],
                TAG_PLAIN,
                0,
                false
            )
            .is_err()
        );
    }

    #[test]
    fn a_command_is_framed_as_the_specification_says() {
        let command = Command::new(CommandCode::SIGN)
            .with(Handle(0x8000_0000), Auth::Empty)
            .parameters(|p| {
                p.u8(0xaa);
            });
        assert_eq!(
            command.frame().unwrap().message,
            [
                0x80, 0x02, 0, 0, 0, 28, 0, 0, 0x01, 0x5d, 0x80, 0, 0, 0, 0, 0, 0, 9, 0x40, 0, 0,
                9, 0, 0, 0, 0, 0, 0xaa
            ]
        );
    }
}
