"""Contract checks that anybody can run on a plug-in: each raises AssertionError with the rule that is broken.

``check_tower(tower)``, ``check_task(task, towers)``, ``check_model(model_class, towers, tasks)`` and
``check_method(ToyRun(towers, model_class, method_class, tasks), folder)``; toy tasks and towers are beside them.
"""

from avcl_core.testing.check_methods import check_method, check_ownership, check_pieces, check_state
from avcl_core.testing.check_models import check_model
from avcl_core.testing.check_tasks import check_task
from avcl_core.testing.check_towers import check_tower
from avcl_core.testing.toy_run import ToyRun
from avcl_core.testing.toy_tasks import toy_task
from avcl_core.testing.toy_towers import toy_towers

__all__ = [
    "ToyRun",
    "check_method",
    "check_model",
    "check_ownership",
    "check_pieces",
    "check_state",
    "check_task",
    "check_tower",
    "toy_task",
    "toy_towers",
]
