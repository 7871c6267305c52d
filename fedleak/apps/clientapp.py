"""The Flower ClientApp: what `flwr run` and a SuperNode start; it answers by SecAgg+ where the scenario has that defense.

From the run configuration: ``scenario``, and ``allow-code``, without which a scenario that names code is refused.
"""

from __future__ import annotations

from functools import lru_cache

from flwr.app import Context, Message

from fedleak.client.app import app as client_app
from fedleak.scenario.code import check_allowed
from fedleak.scenario.schema import Scenario, scenario_from
from fedleak.secagg.client import SecuredApp


@lru_cache(maxsize=8)
def _scenario(text: str) -> Scenario:
    return scenario_from(text)


class Allowed(SecuredApp):
    """The client app of a run that somebody submitted."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer one message, unless the scenario names code that nobody has allowed.

        Raises
        ------
        ScenarioError
            With what would be run.
        """
        check_allowed(_scenario(str(context.run_config.get("scenario", ""))), context.run_config)
        return super().__call__(message, context)


app = Allowed(client_app)
