//! TPM2_MakeCredential without a TPM.

/// Why a secret could not be wrapped for a TPM.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The endorsement key is not one that secrets can be wrapped for.
    #[error("wrapping a secret for an endorsement key: {0}")]
    Key(String),
    /// No random bytes to be had.
    #[error("wrapping a secret for an endorsement key: the random source failed")]
    Random,
}
