"""What use-cases need from the outside. Each store method is one transaction: wholly done and durable when it returns.

A method that acts for an administrator takes an Act whose caller is confirmed in the same transaction: the caller's
grant live, their account enabled and of the same generation, their token not revoked, the required scope still granted
by their roles; else TokenRevoked, TokenOutdated or PermissionMissing and nothing is changed. Each writes its audit row
in that transaction, too. Every method raises DependencyDown when the store does not answer.
"""

from __future__ import annotations

from .accounts import AccountStore, RoleStore
from .grants import BearerStore, CredentialStore, GrantStore, SessionSelection, SessionStore, Sweeper
from .protection import AuditSealStore, AuditStore, ThrottleStore
from .trust import LeaseStore, RevocationStore, Signer, SigningKeyStore

__all__ = [
    "AccountStore",
    "AuditSealStore",
    "AuditStore",
    "BearerStore",
    "CredentialStore",
    "GrantStore",
    "LeaseStore",
    "RevocationStore",
    "RoleStore",
    "SessionSelection",
    "SessionStore",
    "Signer",
    "SigningKeyStore",
    "Sweeper",
    "ThrottleStore",
]
