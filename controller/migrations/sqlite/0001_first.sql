-- Objects of the operator API, their devices' identities, and what devices told.
-- Times are milliseconds since the Unix epoch. Types and statements are such that PostgreSQL takes them with BYTEA for BLOB.

-- Numbers that only grow: 'revision' (resource versions), 'device' (names of new devices).
CREATE TABLE counters (
    name  TEXT NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counters (name, value) VALUES ('revision', 0), ('device', 0);

CREATE TABLE objects (
    kind       TEXT NOT NULL,
    name       TEXT NOT NULL,
    uid        TEXT NOT NULL UNIQUE,
    version    BIGINT NOT NULL,             -- revision of the last write of metadata or spec
    generation BIGINT NOT NULL,             -- counts changes of the spec
    created    BIGINT NOT NULL,
    labels     TEXT NOT NULL,               -- JSON
    annotations TEXT NOT NULL,              -- JSON
    spec       TEXT NOT NULL,               -- JSON
    status     TEXT NOT NULL,               -- JSON, the part that devices tell
    device     TEXT REFERENCES objects (uid),    -- apps: where it runs
    datastore  TEXT REFERENCES objects (uid),    -- apps: where its image is
    PRIMARY KEY (kind, name)
);
CREATE INDEX objects_by_device ON objects (device) WHERE device IS NOT NULL;
CREATE INDEX objects_by_datastore ON objects (datastore) WHERE datastore IS NOT NULL;

-- Who a device is, and how far it can be trusted.
CREATE TABLE identities (
    device           TEXT NOT NULL PRIMARY KEY REFERENCES objects (uid) ON DELETE CASCADE,
    certificate      BLOB NOT NULL,         -- DER
    certificate_hash BLOB NOT NULL UNIQUE,  -- SHA-256 of it
    onboarding_hash  BLOB NOT NULL,         -- SHA-256 of the onboarding certificate's DER
    serial           TEXT NOT NULL,
    soft_serial      TEXT NOT NULL,
    attestation_certificate BLOB,           -- DER
    endorsement_certificate BLOB,           -- DER
    ecdh_certificate        BLOB,           -- PEM
    nonce            BLOB,                  -- given out and not used yet
    nonce_given      BIGINT,
    token            BLOB,                  -- integrity token of the present boot
    attestation      TEXT NOT NULL,         -- JSON, the operator API's Attestation
    keys             BLOB,                  -- escrowed keys, as they came
    figures          TEXT,                  -- JSON, last metrics
    last_seen        BIGINT
);
CREATE INDEX identities_by_serial ON identities (onboarding_hash, serial);

-- The last message of each sort about each thing, as it came.
CREATE TABLE reports (
    device TEXT NOT NULL REFERENCES objects (uid) ON DELETE CASCADE,
    sort   TEXT NOT NULL,
    about  TEXT NOT NULL,
    told   BIGINT NOT NULL,                 -- by the device's clock
    body   BLOB NOT NULL,
    PRIMARY KEY (device, sort, about)
);

-- Logs lie as they came: one gzip member a row, one JSON entry a line.
CREATE TABLE logs (
    seq    INTEGER PRIMARY KEY AUTOINCREMENT,
    owner  TEXT NOT NULL,                   -- uid of a device or an app
    digest BLOB NOT NULL,                   -- SHA-256, so that a repeated upload is stored once
    size   BIGINT NOT NULL,
    body   BLOB NOT NULL,
    UNIQUE (owner, digest)
);
CREATE INDEX logs_by_owner ON logs (owner, seq, size);

CREATE TABLE users (
    name     TEXT NOT NULL PRIMARY KEY,
    password TEXT NOT NULL                  -- algorithm, rounds, salt and hash
);

CREATE TABLE tokens (
    hash    BLOB NOT NULL PRIMARY KEY,      -- SHA-256 of the token
    owner   TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
    expires BIGINT NOT NULL
);
