//! A TPM's response codes in words (TCG TPM 2.0 Library, part 2, 6.6).
//!
//! A code is in one of two formats. Format one (bit 7 set) names an error and what it is about: the n-th parameter,
//! handle or session of the command. Format zero holds general errors and warnings; some warnings mean no more than
//! "once again, please".

use std::fmt;
use std::time::Duration;

/// A response code other than success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResponseCode(pub u32);

/// What a format-one error is about, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// A parameter of the command.
    Parameter(u32),
    /// A handle of the command.
    Handle(u32),
    /// A session of the command.
    Session(u32),
}

/// The error or warning itself, without what it is about.
pub mod code {
    /// The value is of the wrong kind or size (format one).
    pub const VALUE: u32 = 0x084;
    /// The handle names nothing that can be used here (format one).
    pub const HANDLE: u32 = 0x08b;
    /// An authorization failed and counts towards lockout (format one).
    pub const AUTH_FAIL: u32 = 0x08e;
    /// An integrity check failed: a wrapped key was made by another TPM, or under a storage key since cleared (format one).
    pub const INTEGRITY: u32 = 0x09f;
    /// Startup has been done already.
    pub const INITIALIZE: u32 = 0x100;
    /// A self-test failed: the TPM refuses to work.
    pub const FAILURE: u32 = 0x101;
    /// The NV index is locked.
    pub const NV_LOCKED: u32 = 0x148;
    /// The NV index was not defined or the location is not there.
    pub const NV_DEFINED: u32 = 0x14c;
    /// No room for another persistent object or NV index.
    pub const NV_SPACE: u32 = 0x14b;
    /// All object slots are in use.
    pub const OBJECT_MEMORY: u32 = 0x902;
    /// The TPM gave the processor back and wants the command again.
    pub const YIELDED: u32 = 0x908;
    /// A self-test is running.
    pub const TESTING: u32 = 0x90a;
    /// The first handle is not loaded.
    pub const REFERENCE_H0: u32 = 0x910;
    /// Writes to NV come too fast.
    pub const NV_RATE: u32 = 0x920;
    /// Too many authorization failures: no use of protected objects for a while.
    pub const LOCKOUT: u32 = 0x921;
    /// The TPM was busy and wants the command again.
    pub const RETRY: u32 = 0x922;
    /// NV cannot be written right now.
    pub const NV_UNAVAILABLE: u32 = 0x923;
}

impl ResponseCode {
    /// Says whether the code is of format one.
    const fn is_format_one(self) -> bool {
        self.0 & 0x80 != 0
    }

    /// The code without what it is about: comparable with the constants in [`code`].
    #[must_use]
    pub const fn base(self) -> u32 {
        if self.is_format_one() {
            self.0 & 0x0bf
        } else {
            self.0
        }
    }

    /// What a format-one error is about.
    #[must_use]
    pub const fn about(self) -> Option<About> {
        if !self.is_format_one() {
            None
        } else if self.0 & 0x40 != 0 {
            Some(About::Parameter((self.0 >> 8) & 0xf))
        } else if self.0 & 0x800 != 0 {
            Some(About::Session((self.0 >> 8) & 0x7))
        } else {
            Some(About::Handle((self.0 >> 8) & 0x7))
        }
    }

    /// True if the TPM is locked out after too many wrong authorizations.
    #[must_use]
    pub const fn is_lockout(self) -> bool {
        self.0 == code::LOCKOUT
    }

    /// How long to wait before the command is sent again for the `attempt`-th time (from 1); `None` if sending it again
    /// is of no use, or has been tried long enough: some nine seconds in all. A self-test of a discrete TPM takes up to
    /// two seconds.
    #[must_use]
    pub fn retry_after(self, attempt: u32) -> Option<Duration> {
        let again = matches!(
            self.0,
            code::RETRY | code::YIELDED | code::TESTING | code::NV_RATE
        );
        if !again || attempt > 12 {
            return None;
        }
        let doubled = 5_u64.saturating_mul(1 << attempt.min(8));
        Some(Duration::from_millis(doubled.min(1280)))
    }

    fn words(self) -> Option<&'static str> {
        Some(match self.base() {
            0x081 => "asymmetric algorithm not supported or not correct",
            0x082 => "inconsistent attributes",
            0x083 => "hash algorithm not supported or not appropriate",
            0x084 => "value out of range or not correct for the context",
            0x085 => "hierarchy not enabled or not correct for the use",
            0x087 => "key size not supported",
            0x089 => "mode of operation not supported",
            0x08a => "type of the value not appropriate for the use",
            0x08b => "handle not correct for the use, or names nothing",
            0x08e => "authorization failed, and the failure counts towards lockout",
            0x08f => "invalid nonce",
            0x092 => "scheme not supported",
            0x095 => "wrong size",
            0x096 => "symmetric algorithm not supported",
            0x097 => "incorrect structure tag",
            0x099 => "union selector incorrect",
            0x09a => "too few octets in the value",
            0x09b => "signature not valid",
            0x09c => "key fields not compatible with the selected use",
            0x09d => "a policy check failed",
            0x09f => {
                "integrity check failed: made by another TPM, or under a storage key that was cleared since"
            }
            0x0a0 => "invalid ticket",
            0x0a1 => "reserved bits not zero",
            0x0a2 => "authorization failed",
            0x0a3 => "the policy has expired",
            0x0a4 => "the command code in the policy is another",
            0x0a5 => "public and sensitive part do not belong together",
            0x0a6 => "curve not supported",
            0x0a7 => "point not on the curve",
            0x100 => "not initialised by a startup command, or initialised already",
            0x101 => {
                "the TPM is in failure mode after a failed self-test; a power cycle may help, else the TPM is broken"
            }
            0x120 => "the command is disabled",
            0x124 => "authorization value or policy missing",
            0x125 => "wrong authorization type",
            0x128 => "a reset is needed first",
            0x12d => "wrong command size",
            0x12e => "command code not supported",
            0x131 => "the context gap is too large",
            0x143 => "command code not supported",
            0x144 => "authorization size wrong",
            0x145 => "the authorization is not available",
            0x146 => "NV access beyond the end, or wrong size",
            0x147 => "NV index size wrong",
            0x148 => "NV index is locked",
            0x149 => "NV access not authorized",
            0x14a => "NV index not initialised, or the stored state could not be restored",
            0x14b => "not enough room in NV memory: remove persistent objects or indexes",
            0x14c => "NV index or persistent object already defined",
            0x150 => "the saved context is not valid",
            0x152 => "parent key not valid",
            0x901 => "out of memory for contexts",
            0x902 => "out of memory for objects: too many keys loaded",
            0x903 => "out of memory for sessions",
            0x904 => "out of memory for objects and sessions",
            0x905 => "session handles used up: sessions must be flushed first",
            0x906 => "object handles used up",
            0x907 => "bad locality",
            0x908 => "yielded: to be sent again",
            0x909 => "cancelled",
            0x90a => "a self-test is running",
            0x910..=0x916 => "a handle names an object that is not loaded",
            0x918..=0x91e => "a session handle names a session that is not loaded",
            0x920 => "NV memory is being written too fast",
            0x921 => {
                "LOCKED OUT after too many wrong authorizations: wait for the lockout to time out, or clear the TPM in the firmware's menu"
            }
            0x922 => "busy: to be sent again",
            0x923 => "NV memory is not available now",
            _ => return None,
        })
    }
}

impl fmt::Display for ResponseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.words() {
            Some(words) => write!(f, "{words} (code {:#05x}", self.0)?,
            None => write!(f, "an unknown response (code {:#05x}", self.0)?,
        }
        match self.about() {
            Some(About::Parameter(n)) => write!(f, ", parameter {n})"),
            Some(About::Handle(n)) => write!(f, ", handle {n})"),
            Some(About::Session(n)) => write!(f, ", session {n})"),
            None => write!(f, ")"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_told_in_words() {
        // (code, what it is without its subject, what it is about, a word that the text holds)
        let table = [
            (
                0x1df,
                code::INTEGRITY,
                Some(About::Parameter(1)),
                "another TPM",
            ),
            (0x18b, code::HANDLE, Some(About::Handle(1)), "handle 1"),
            (
                0x98e,
                code::AUTH_FAIL,
                Some(About::Session(1)),
                "counts towards lockout",
            ),
            (0x921, code::LOCKOUT, None, "LOCKED OUT"),
            (0x101, code::FAILURE, None, "failure mode"),
            (0x2c4, code::VALUE, Some(About::Parameter(2)), "parameter 2"),
            (0x7ff, 0x0bf, Some(About::Parameter(7)), "unknown"),
        ];
        for (number, base, about, word) in table {
            let code = ResponseCode(number);
            assert_eq!(code.base(), base, "{number:#x}");
            assert_eq!(code.about(), about, "{number:#x}");
            assert!(code.to_string().contains(word), "{code}");
        }
    }

    #[test]
    fn only_busy_answers_are_retried_and_not_for_ever() {
        for number in [code::RETRY, code::YIELDED, code::TESTING, code::NV_RATE] {
            let waits: Vec<Duration> = (1..)
                .map_while(|n| ResponseCode(number).retry_after(n))
                .collect();
            let total: Duration = waits.iter().sum();
            assert!(
                total > Duration::from_secs(5) && total < Duration::from_secs(12),
                "{total:?}"
            );
        }
        for number in [code::LOCKOUT, code::FAILURE, 0x18b, code::INITIALIZE] {
            assert_eq!(ResponseCode(number).retry_after(1), None, "{number:#x}");
        }
    }
}
