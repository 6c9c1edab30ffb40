-- The catalogue (what operators configure) and the ledger (what was given). See docs/ARCHITECTURE.md.
--
-- `sid` is a surrogate id: rows of the ledger carry surrogates only, so that an outer user id lives in one row that
-- can be erased. Ids that callers choose are compared byte by byte (COLLATE "C").

-- Versions of the catalogue: every change of a promotion, its prizes or its entrances draws the next one.
CREATE SEQUENCE guerdon.catalogue_version;

CREATE TABLE guerdon.asset (
    sid bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    asset text COLLATE "C" NOT NULL UNIQUE
);

CREATE TABLE guerdon.entrance (
    sid bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    entrance_id text COLLATE "C" NOT NULL UNIQUE,
    display_name text NOT NULL,
    version bigint NOT NULL DEFAULT nextval('guerdon.catalogue_version'),
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);

CREATE TABLE guerdon.promotion (
    sid bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    promotion_id text COLLATE "C" NOT NULL UNIQUE,
    display_name text NOT NULL,
    -- As an operator set it: 1 draft, 2 scheduled, 3 active, 4 paused, 5 ended, 6 archived (PromotionState).
    -- What it is now follows from this, starts_at, ends_at and the time: guerdon.effective_state.
    state smallint NOT NULL CHECK (state BETWEEN 1 AND 6),
    starts_at timestamptz,
    ends_at timestamptz,
    -- Of the promotion with its prizes and entrances: what a decision was made under, and the commit compares.
    version bigint NOT NULL DEFAULT nextval('guerdon.catalogue_version'),
    -- Of the promotion's own fields, for its etag.
    own_version bigint NOT NULL DEFAULT 1,
    -- The gate's epoch: (number << 24 | random), and the run id of the Redis on which it was loaded. 0: never opened.
    gate_epoch bigint NOT NULL DEFAULT 0,
    gate_run_id text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CHECK (starts_at < ends_at)
);
-- Workers poll for what changed.
CREATE UNIQUE INDEX promotion_version ON guerdon.promotion (version);

CREATE TABLE guerdon.promotion_entrance (
    promotion bigint NOT NULL REFERENCES guerdon.promotion,
    entrance bigint NOT NULL REFERENCES guerdon.entrance,
    PRIMARY KEY (promotion, entrance)
);
CREATE INDEX promotion_entrance_entrance ON guerdon.promotion_entrance (entrance, promotion);

CREATE TABLE guerdon.account (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- AccountKind of the wire: 1 stock source, 2 stock, 3 holding, 4 budget source, 5 budget, 6 wallet, 7 liability.
    kind smallint NOT NULL CHECK (kind BETWEEN 1 AND 7),
    -- Whose: a subject's sid (3, 6) or a promotion's (1, 2, 4, 5, 7).
    owner bigint NOT NULL,
    -- Of what: a prize's sid (1, 2, 3) or an asset's (4, 5, 6, 7).
    item bigint NOT NULL,
    -- Monotonic; balance = credits - debits.
    debits bigint NOT NULL DEFAULT 0 CHECK (debits >= 0),
    credits bigint NOT NULL DEFAULT 0 CHECK (credits >= 0),
    -- The least balance; null: none (sources, unlimited stock and budget).
    floor bigint,
    -- Of the capacity (initial + top-ups - recalls) of stock and budget: the gate keeps the newest.
    capacity_version bigint,
    UNIQUE (kind, owner, item),
    CONSTRAINT account_floor CHECK (floor IS NULL OR credits - debits >= floor)
) WITH (fillfactor = 70);
-- The counters stay unindexed so that updates are HOT.

CREATE TABLE guerdon.prize (
    sid bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    prize_id text COLLATE "C" NOT NULL UNIQUE,
    promotion bigint NOT NULL REFERENCES guerdon.promotion,
    display_name text NOT NULL,
    -- PrizeKind of the wire: 1 coupon, 2 coin, 3 cashback, 4 goods.
    kind smallint NOT NULL CHECK (kind BETWEEN 1 AND 4),
    asset bigint REFERENCES guerdon.asset,
    -- Fixed, or a rate of an attribute; both null: no value.
    fixed_units bigint CHECK (fixed_units > 0),
    rate_attribute text COLLATE "C",
    rate_basis_points int CHECK (rate_basis_points > 0),
    rate_floor_units bigint CHECK (rate_floor_units > 0),
    rate_cap_units bigint CHECK (rate_cap_units > 0),
    -- Rounding of the wire: 1 half up, 2 half even, 3 down, 4 up.
    rate_rounding smallint CHECK (rate_rounding BETWEEN 1 AND 4),
    -- 0: none. The highest that ever held, for the proof.
    limit_per_user bigint NOT NULL DEFAULT 0 CHECK (limit_per_user >= 0),
    limit_per_user_highest bigint NOT NULL DEFAULT 0,
    valid_until timestamptz,
    valid_days int CHECK (valid_days BETWEEN 1 AND 36500),
    own_version bigint NOT NULL DEFAULT 1,
    -- Its accounts, for the commit: units go stock -> holding, value goes budget -> wallet, or -> liability where set.
    stock_source_account bigint NOT NULL REFERENCES guerdon.account,
    stock_account bigint NOT NULL REFERENCES guerdon.account,
    budget_account bigint REFERENCES guerdon.account,
    liability_account bigint REFERENCES guerdon.account,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CHECK ((asset IS NULL) = (fixed_units IS NULL AND rate_attribute IS NULL)),
    CHECK (fixed_units IS NULL OR rate_attribute IS NULL),
    CHECK ((rate_attribute IS NULL) = (rate_basis_points IS NULL)),
    CHECK ((asset IS NULL) = (budget_account IS NULL)),
    CHECK (kind IN (1, 4) OR asset IS NOT NULL),
    CHECK ((liability_account IS NOT NULL) = (kind IN (1, 4) AND asset IS NOT NULL))
);
CREATE INDEX prize_promotion ON guerdon.prize (promotion, prize_id);

-- The one place of outer user ids.
CREATE TABLE guerdon.subject (
    sid bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id text COLLATE "C" NOT NULL UNIQUE
);

-- Who called: the principals that servers have seen.
CREATE TABLE guerdon.principal (
    sid int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    principal text COLLATE "C" NOT NULL UNIQUE
);

-- One committed batch: the unit of the change feed. Ids are drawn before commit, so they do not commit in order: a
-- reader of the feed reads rows with xid < pg_snapshot_xmin(pg_current_snapshot()).
CREATE TABLE guerdon.batch (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    -- 1 issuances, 2 a change of capacity.
    kind smallint NOT NULL,
    booked_at timestamptz NOT NULL,
    issuance_count int NOT NULL,
    transfer_count int NOT NULL,
    -- The worker's incarnation; null: an operator's call.
    worker bigint
);

-- Append-only: corrections are new transfers.
CREATE TABLE guerdon.transfer (
    id bigint GENERATED ALWAYS AS IDENTITY NOT NULL,
    batch bigint NOT NULL,
    -- TransferKind of the wire.
    kind smallint NOT NULL CHECK (kind BETWEEN 1 AND 8),
    debit bigint NOT NULL,
    credit bigint NOT NULL,
    amount bigint NOT NULL CHECK (amount > 0),
    issuance bigint,
    CHECK (debit <> credit)
);
CREATE INDEX transfer_debit ON guerdon.transfer (debit, id);
CREATE INDEX transfer_credit ON guerdon.transfer (credit, id);

-- The key of every request that has an outcome, for ever, and the whole grant: a replay needs nothing else.
CREATE TABLE guerdon.request (
    promotion bigint NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    -- 1 granted; 2 fenced (no grant at or below `admission`); 3 cancelled (never).
    outcome smallint NOT NULL CHECK (outcome BETWEEN 1 AND 3),
    -- Granted: the admission that was used. Fenced: the highest fenced one.
    admission bigint NOT NULL,
    issuance_id bigint,
    batch bigint,
    subject bigint,
    prize bigint,
    entrance bigint,
    -- The attribute that the value was computed from; null where the value is fixed or there is none.
    basis bigint,
    -- Units of the prize's asset; null where it has none.
    value bigint,
    reference text COLLATE "C",
    principal int,
    issued_at timestamptz,
    expires_at timestamptz,
    -- The name of the attribute that `basis` is of: the prize may go by another one by now.
    basis_attribute text COLLATE "C",
    PRIMARY KEY (promotion, request_id),
    CHECK ((outcome = 1) = (issuance_id IS NOT NULL))
);
CREATE UNIQUE INDEX request_issuance ON guerdon.request (issuance_id) WHERE issuance_id IS NOT NULL;
CREATE INDEX request_subject ON guerdon.request (subject, issuance_id) WHERE issuance_id IS NOT NULL;
CREATE INDEX request_promotion ON guerdon.request (promotion, issuance_id) WHERE issuance_id IS NOT NULL;
CREATE INDEX request_reference ON guerdon.request (reference, issuance_id) WHERE reference IS NOT NULL;
CREATE SEQUENCE guerdon.issuance_id;

-- Mutations of the catalogue by request id: what was asked, so that a repetition is recognised.
CREATE TABLE guerdon.operation (
    method text NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    content jsonb NOT NULL,
    principal text NOT NULL,
    done_at timestamptz NOT NULL,
    PRIMARY KEY (method, request_id)
);

-- Server processes. An admission carries its worker's incarnation, so that a dead one's are fenced at once.
CREATE TABLE guerdon.worker (
    incarnation bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    host text NOT NULL,
    pid int NOT NULL,
    started_at timestamptz NOT NULL,
    seen_at timestamptz NOT NULL,
    stopped_at timestamptz
);

-- Background jobs: one process at a time, by a lease on the database's clock.
CREATE TABLE guerdon.lease (
    job text PRIMARY KEY,
    worker bigint NOT NULL,
    expires_at timestamptz NOT NULL
);

-- Moved only in test mode: guerdon.now() = the clock + offset_us.
CREATE TABLE guerdon.clock (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    offset_us bigint NOT NULL DEFAULT 0
);
INSERT INTO guerdon.clock DEFAULT VALUES;
