-- Zero-touch enrolment: who may become a device, who waits for it, and which boots were seen.
-- Times are milliseconds since the Unix epoch. Types and statements are such that PostgreSQL takes them with BYTEA for BLOB.

-- Machines that enrolled by themselves. The others have no machine id; their onboarding_hash is that of the image's certificate,
-- and empty here.
ALTER TABLE identities ADD COLUMN machine BLOB;               -- SHA-256 of the endorsement key, or of the device key
ALTER TABLE identities ADD COLUMN enrolled_level TEXT;        -- how strong the proof was at enrolment
ALTER TABLE identities ADD COLUMN facts TEXT;                 -- JSON, the operator API's MachineFacts
ALTER TABLE identities ADD COLUMN certificate_ends BIGINT;
ALTER TABLE identities ADD COLUMN attestation_point BLOB;     -- P-256, uncompressed; what the machine proved to hold
ALTER TABLE identities ADD COLUMN agreement_point BLOB;
ALTER TABLE identities ADD COLUMN reset_count BIGINT;         -- the TPM's, at the last boot that was seen
ALTER TABLE identities ADD COLUMN clock BIGINT;               -- the TPM's, in milliseconds
ALTER TABLE identities ADD COLUMN token_ends BIGINT;
CREATE UNIQUE INDEX identities_by_machine ON identities (machine) WHERE machine IS NOT NULL;
CREATE INDEX identities_by_any_serial ON identities (serial) WHERE machine IS NOT NULL;

-- Nonces that are used up, until their challenges have run out anyway.
CREATE TABLE enrolments (
    nonce      BLOB NOT NULL PRIMARY KEY,
    machine    BLOB NOT NULL,
    evidence   BLOB NOT NULL,               -- SHA-256 of the evidence that used it up
    transcript BLOB NOT NULL,
    answer     BLOB NOT NULL,               -- given again for the same evidence
    deadline   BIGINT NOT NULL
);
CREATE INDEX enrolments_by_deadline ON enrolments (deadline);
CREATE INDEX enrolments_by_machine ON enrolments (machine);

CREATE TABLE manifest_lines (
    manifest TEXT NOT NULL REFERENCES objects (uid) ON DELETE CASCADE,
    line     BIGINT NOT NULL,
    machine  BLOB,
    serial   TEXT NOT NULL,                 -- empty: any
    name     TEXT NOT NULL,                 -- empty: the next free one
    labels   TEXT NOT NULL,                 -- JSON
    device   TEXT REFERENCES objects (uid) ON DELETE SET NULL,   -- who enrolled by it
    PRIMARY KEY (manifest, line)
);
CREATE INDEX manifest_lines_by_machine ON manifest_lines (machine) WHERE machine IS NOT NULL;
CREATE INDEX manifest_lines_by_serial ON manifest_lines (serial) WHERE serial <> '';
CREATE INDEX manifest_lines_by_device ON manifest_lines (device) WHERE device IS NOT NULL;

-- Machines that have proven their keys and wait for a person.
CREATE TABLE waiting (
    machine    BLOB NOT NULL PRIMARY KEY,
    level      TEXT NOT NULL,
    decision   TEXT NOT NULL,               -- Waiting, Approved, Denied
    decided_by TEXT NOT NULL,
    name       TEXT NOT NULL,               -- for the device; empty: the next free one
    labels     TEXT NOT NULL,               -- JSON
    status     TEXT NOT NULL,               -- JSON, the operator API's WaitingMachineStatus
    first_seen BIGINT NOT NULL,
    last_seen  BIGINT NOT NULL
);
CREATE INDEX waiting_by_level ON waiting (level, last_seen);

-- Machines with other keys that claimed what a device claims.
CREATE TABLE alarms (
    device  TEXT NOT NULL REFERENCES objects (uid) ON DELETE CASCADE,
    machine BLOB NOT NULL,
    message TEXT NOT NULL,
    time    BIGINT NOT NULL,
    PRIMARY KEY (device, machine)
);

CREATE TABLE boots (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    device      TEXT NOT NULL REFERENCES objects (uid) ON DELETE CASCADE,
    occasion    TEXT NOT NULL,
    time        BIGINT NOT NULL,            -- when it was first seen
    reset_count BIGINT,                     -- the TPM's; none without a TPM
    restart_count BIGINT,
    good        BIGINT NOT NULL,            -- 1: trusted
    attestation TEXT NOT NULL,              -- JSON, the operator API's Attestation
    pcrs        TEXT NOT NULL,              -- JSON, by number
    event_log   BLOB                        -- gzip
);
CREATE INDEX boots_by_device ON boots (device, seq);
