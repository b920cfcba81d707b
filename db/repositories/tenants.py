"""Tenants: who may submit, with what share and quota, and with which secrets their webhooks are signed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from sqlalchemy import Connection, text

from db.records import TenantQuota, TenantRow, TenantServiceRow

_COLUMNS = "name, weight, secret_current IS NOT NULL AS has_secret, secret_previous IS NOT NULL AS rotating"

_GET = text(f"SELECT {_COLUMNS} FROM tenants WHERE name = :name")  # noqa: S608
_LIST = text(f"SELECT {_COLUMNS} FROM tenants ORDER BY name")  # noqa: S608
_KNOWN = text("SELECT name FROM tenants WHERE name = ANY(CAST(:names AS text[]))")

_INSERT = text("""
    INSERT INTO tenants (name, secret_current)
    SELECT name, secret FROM unnest(CAST(:names AS text[]), CAST(:secrets AS bytea[])) AS t(name, secret)
    ORDER BY name
    ON CONFLICT (name) DO NOTHING RETURNING name
""")

_SET_WEIGHT = text("UPDATE tenants SET weight = :weight WHERE name = :name RETURNING name")

_WEIGHTS = text("SELECT name, weight FROM tenants WHERE weight <> 1")

# Usage that is not folded yet counts as well, so that the sum is what was committed.
_SERVED = """
    SELECT tenant, CAST(sum(prompt_tokens) AS bigint) AS prompt_tokens,
        CAST(sum(completion_tokens) AS bigint) AS completion_tokens, sum(lift) AS lift, max(weight) AS weight
    FROM (
        SELECT tenant, prompt_tokens, completion_tokens, lift, weight FROM tenant_service
        WHERE pool = :pool {which}
        UNION ALL
        SELECT tenant, prompt_tokens, completion_tokens, 0, NULL FROM usage_deltas
        WHERE pool = :pool {which}
    ) AS served
    GROUP BY tenant ORDER BY tenant
"""
_SERVICE = text(_SERVED.format(which=""))
_SERVICE_OF = text(_SERVED.format(which="AND tenant = ANY(CAST(:tenants AS text[]))"))

_LIFT = text("""
    INSERT INTO tenant_service (pool, tenant, lift, weight)
    SELECT :pool, t.* FROM unnest(
        CAST(:tenants AS text[]), CAST(:lifts AS float8[]), CAST(:weights AS float8[])
    ) AS t(tenant, lift, weight)
    ORDER BY tenant
    ON CONFLICT (pool, tenant) DO UPDATE SET lift = excluded.lift, weight = excluded.weight
""")

_ROTATE = text("""
    UPDATE tenants SET secret_previous = secret_current, secret_current = :secret
    WHERE name = :name RETURNING name
""")

_FILL = text("""
    UPDATE tenants SET secret_current = :secret WHERE name = :name AND secret_current IS NULL
""")

_DROP_PREVIOUS = text("""
    UPDATE tenants SET secret_previous = NULL
    WHERE name = :name AND secret_previous IS NOT NULL RETURNING name
""")

_SECRETS = text("""
    SELECT name, secret_current, secret_previous FROM tenants WHERE name = ANY(CAST(:names AS text[]))
""")

_QUOTAS = text("SELECT tenant, max_queued_jobs, max_tokens_per_s FROM tenant_quotas ORDER BY tenant")

_SET_QUOTA = text("""
    INSERT INTO tenant_quotas (tenant, max_queued_jobs, max_tokens_per_s)
    VALUES (:tenant, :max_queued_jobs, :max_tokens_per_s)
    ON CONFLICT (tenant) DO UPDATE SET
        max_queued_jobs = excluded.max_queued_jobs, max_tokens_per_s = excluded.max_tokens_per_s
""")

_DROP_QUOTA = text("DELETE FROM tenant_quotas WHERE tenant = :tenant")


class TenantRepository:
    """Tenants by name; secrets come and go encrypted (`db.secrets.SecretBox`)."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, name: str) -> TenantRow | None:
        """Read one tenant."""
        row = self._connection.execute(_GET, {"name": name}).one_or_none()
        return TenantRow(**row._mapping) if row else None  # noqa: SLF001

    def all(self) -> list[TenantRow]:
        """List all tenants by name."""
        return [TenantRow(**row._mapping) for row in self._connection.execute(_LIST)]  # noqa: SLF001

    def known(self, names: Collection[str]) -> set[str]:
        """Tell which of some names are tenants."""
        return set(self._connection.execute(_KNOWN, {"names": sorted(set(names))}).scalars())

    def ensure_all(self, names: Collection[str], seal: Callable[[], bytes] | None = None) -> list[str]:
        """Enter tenants that are not there yet, each with a secret from `seal`; returns the new ones."""
        missing = sorted(set(names) - self.known(names))
        if not missing:
            return []
        secrets = [seal() if seal else None for _ in missing]
        return sorted(self._connection.execute(_INSERT, {"names": missing, "secrets": secrets}).scalars())

    def ensure(self, name: str, seal: Callable[[], bytes] | None = None) -> TenantRow:
        """Enter a tenant if it is not there yet, and give one without a secret its first."""
        self.ensure_all([name], seal)
        tenant = self.get(name)
        assert tenant is not None, "a tenant just ensured is there"
        if seal is None or tenant.has_secret:
            return tenant
        self._connection.execute(_FILL, {"name": name, "secret": seal()})
        return self.get(name) or tenant

    def set_weight(self, name: str, weight: float) -> bool:
        """Set a tenant's share; False if there is no such tenant."""
        return (
            self._connection.execute(_SET_WEIGHT, {"name": name, "weight": weight}).one_or_none() is not None
        )

    def weights(self) -> dict[str, float]:
        """Read the weights that are not 1."""
        return {row.name: row.weight for row in self._connection.execute(_WEIGHTS)}

    def service(self, pool: str, tenants: Collection[str] | None = None) -> list[TenantServiceRow]:
        """Read what tenants were served in a pool, by all usage that is committed: all of them, or some.

        Those that were never served or lifted are left out.
        """
        values = {"pool": pool} if tenants is None else {"pool": pool, "tenants": list(tenants)}
        return [
            TenantServiceRow(
                row.tenant,
                row.prompt_tokens,
                row.completion_tokens,
                row.lift,
                1.0 if row.weight is None else row.weight,
            )
            for row in self._connection.execute(_SERVICE if tenants is None else _SERVICE_OF, values)
        ]

    def lift(self, pool: str, lifts: Mapping[str, tuple[float, float]]) -> None:
        """Write what tenants' counters are lifted by, and the weights under which that holds."""
        if not lifts:
            return
        values = {
            "pool": pool,
            "tenants": list(lifts),
            "lifts": [lift for lift, _ in lifts.values()],
            "weights": [weight for _, weight in lifts.values()],
        }
        self._connection.execute(_LIFT, values)

    def quotas(self) -> list[TenantQuota]:
        """List the tenants that have a quota."""
        return [TenantQuota(*row) for row in self._connection.execute(_QUOTAS)]

    def set_quota(self, quota: TenantQuota) -> None:
        """Set what a tenant may have queued and submit; one without any limit is forgotten."""
        is_limited = quota.max_queued_jobs is not None or quota.max_tokens_per_s is not None
        self._connection.execute(_SET_QUOTA if is_limited else _DROP_QUOTA, quota._asdict())

    def set_webhook_secret(self, name: str, ciphertext: bytes) -> bool:
        """Make a secret the current one; the one before stays valid beside it. False: no such tenant."""
        values = {"name": name, "secret": ciphertext}
        return self._connection.execute(_ROTATE, values).one_or_none() is not None

    def drop_previous_secret(self, name: str) -> bool:
        """End a rotation; False if none was under way."""
        return self._connection.execute(_DROP_PREVIOUS, {"name": name}).one_or_none() is not None

    def webhook_secrets(self, name: str) -> tuple[bytes, ...]:
        """Read the encrypted secrets that sign now, the current one first."""
        return self.webhook_secrets_of([name])[name]

    def webhook_secrets_of(self, names: Collection[str]) -> dict[str, tuple[bytes, ...]]:
        """Read the encrypted secrets of some tenants; none for those that have none."""
        rows = self._connection.execute(_SECRETS, {"names": sorted(set(names))})
        found = {
            name: tuple(bytes(secret) for secret in secrets if secret is not None) for name, *secrets in rows
        }
        return {name: found.get(name, ()) for name in names}
