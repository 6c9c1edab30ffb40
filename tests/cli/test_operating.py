"""serve, migrate, verify, config, health."""

from __future__ import annotations

import asyncio
import subprocess
import tomllib
from pathlib import Path

import pytest

from guerdon_server.core.stock.buckets import BUCKETS_MAX
from guerdon_server.platform import postgres
from tests.cli.conftest import COMMAND, Cli, clean_env, started


def test_wrong_settings_are_all_told_with_the_mend(alone: Cli, tmp_path: Path) -> None:
    file = tmp_path / "guerdon.toml"
    file.write_text('grpc_prt = 7\nlog_level = "loud"\n')
    alone.env |= {"GUERDON_COMMIT_SECONDS_MAX": "soon", "GUERDON_POSTGRES_DSN": "postgresql://u:hunter2@h/d"}
    problems = alone.json("serve", "--config", file, "--metrics-port", "99999", code=2)["error"]["problems"]
    assert {each["setting"] for each in problems} == {
        "grpc_prt",
        "log_level",
        "commit_seconds_max",
        "metrics_port",
        "redis_url",
    }
    told = alone("serve", "--config", file, code=2).err
    assert "grpc_port" in told
    assert "GUERDON_REDIS_URL" in told
    assert "hunter2" not in told


def test_an_unmigrated_database_is_refused_then_migrated(
    alone: Cli, empty_database: str, connections: dict[str, str]
) -> None:
    alone.env |= {**connections, "GUERDON_POSTGRES_DSN": empty_database}
    serving = [*COMMAND, "serve", "--grpc-port", "0", "--metrics-port", "0"]
    refused = subprocess.run(serving, env=clean_env(**alone.env), capture_output=True, text=True, check=False)  # noqa: S603
    assert refused.returncode == 1
    assert "guerdon migrate" in refused.stderr
    del alone.env["GUERDON_REDIS_URL"]  # not needed for this
    pending = alone.json("migrate", "--dry-run", code=1)
    assert pending["steps"]
    assert alone.json("migrate")["steps"] == pending["steps"]
    assert alone.json("migrate") == {"dry_run": False, "steps": []}
    assert "up to date" in alone("migrate", "--dry-run").out


def test_the_stock_buckets_of_a_promotion(cli: Cli, connections: dict[str, str]) -> None:
    cli("promotion", "create", "very-hot")
    cli.env |= connections
    assert cli.json("buckets", "very-hot") == {"promotion_id": "very-hot", "gate_buckets": 1}
    assert "3 stock buckets" in cli("buckets", "very-hot", "3").out
    assert cli.json("buckets", "very-hot")["gate_buckets"] == 3
    assert "no promotion cold" in cli("buckets", "cold", "2", code=1).err
    assert cli("buckets", "very-hot", str(BUCKETS_MAX)).out
    assert str(BUCKETS_MAX) in cli("buckets", "very-hot", str(BUCKETS_MAX + 1), code=2).err
    cli("promotion", "transition", "very-hot", "scheduled")


def test_two_servers_side_by_side(cli: Cli, connections: dict[str, str]) -> None:
    with started("serve", "--grpc-port", "0", "--metrics-port", "0", env=connections) as (process, ready):
        assert ready["grpc"] != cli.env["GUERDON_TARGET"]
        cli("entrance", "create", "seen-by-both")
        assert cli.json("entrance", "show", "seen-by-both", "--target", ready["grpc"])["entrance_id"] == "seen-by-both"
        process.terminate()
        assert process.wait() == 0


def test_verify_proves_each_promise_on_the_live_system(cli: Cli, connections: dict[str, str]) -> None:
    cli.env |= connections
    proof = cli.json("verify")
    assert proof["ok"] is True
    assert len(proof["checks"]) >= 10
    assert all(check["promise"] and check["what"] for check in proof["checks"])
    assert "promises hold" in cli("verify").out


def test_verify_finds_a_broken_book(alone: Cli, database: str, connections: dict[str, str]) -> None:
    alone.env |= {**connections, "GUERDON_POSTGRES_DSN": database}
    asyncio.run(_embezzle(database))
    proof = alone.json("verify", code=1)
    broken = [check for check in proof["checks"] if not check["ok"]]
    assert broken
    assert all(check["examples"] for check in broken)
    assert "VIOLATED" in alone("verify", code=1).out


async def _embezzle(dsn: str) -> None:
    connection = await postgres.connect(dsn)
    await connection.execute("INSERT INTO account (kind, owner, item, credits) VALUES (6, 1, 1, 5)")
    await connection.close()


def test_verify_wants_data_that_is_there(alone: Cli, tmp_path: Path) -> None:
    assert "holds no data" in alone("verify", code=1).err
    assert "--data" in alone("verify", "--data", tmp_path, code=1).err
    assert list(tmp_path.iterdir()) == []


def test_config_shows_each_value_with_its_source_and_no_secret(alone: Cli, tmp_path: Path) -> None:
    file = tmp_path / "guerdon.toml"
    file.write_text("twin_wait_ms_max = 7\n")
    alone.env |= {"GUERDON_POSTGRES_DSN": "postgresql://u:hunter2@h/d", "GUERDON_LOG_LEVEL": "debug"}
    done = alone("config", "show", "--config", file, "--set", "grpc_port=7000", "--json")
    shown = {row["name"]: (row["value"], row["source"]) for row in done.documents}
    assert shown["twin_wait_ms_max"] == ("7", f"file:{file}")
    assert shown["log_level"] == ("debug", "env:GUERDON_LOG_LEVEL")
    assert shown["grpc_port"] == ("7000", "flag")
    assert shown["metrics_port"] == ("7451", "default")
    assert shown["redis_url"] == ("not set", "nowhere")
    assert "hunter2" not in done.out
    assert "hunter2" not in alone("config", "show").out


def test_the_template_is_a_settings_file(alone: Cli, tmp_path: Path) -> None:
    template = alone("config", "template").out
    uncommented = "\n".join(line.removeprefix("# ") for line in template.splitlines() if " = " in line)
    file = tmp_path / "guerdon.toml"
    file.write_text(uncommented)
    assert "grpc_port" in tomllib.loads(uncommented)
    alone("config", "show", "--config", file)


@pytest.mark.parametrize("service", ["", "guerdon.v1.PrizeService"])
def test_health(cli: Cli, service: str) -> None:
    assert cli.json("health", "--service", service)["status"] == "SERVING"


def test_health_of_a_service_that_is_not_there(cli: Cli) -> None:
    told = cli("health", "--service", "guerdon.v1.NoService", code=1).err
    assert "no service guerdon.v1.NoService" in told
    assert "guerdon.v1.PrizeService" in told
