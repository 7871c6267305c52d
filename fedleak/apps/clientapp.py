"""The Flower ClientApp: what `flwr run` and a SuperNode start; it answers by SecAgg+ where the scenario has that defense."""

from __future__ import annotations

from fedleak.client.app import app as client_app
from fedleak.secagg.client import SecuredApp

app = SecuredApp(client_app)
