-- The time of the system: the database's clock (not the transaction's start) plus the offset of test mode.
CREATE OR REPLACE FUNCTION guerdon.now() RETURNS timestamptz
LANGUAGE sql VOLATILE
AS $$ SELECT clock_timestamp() + (SELECT offset_us FROM guerdon.clock) * interval '1 microsecond' $$;

-- The state of a promotion at an instant. Mirrors core/promotion/rules.py: effective_state.
CREATE OR REPLACE FUNCTION guerdon.effective_state(
    state smallint, starts_at timestamptz, ends_at timestamptz, at timestamptz
) RETURNS smallint
LANGUAGE sql IMMUTABLE
AS $$
    SELECT CASE
        WHEN state IN (2, 3, 4) AND ends_at <= at THEN 5
        WHEN state = 2 AND (starts_at IS NULL OR starts_at <= at) THEN 3
        ELSE state
    END::smallint
$$;
