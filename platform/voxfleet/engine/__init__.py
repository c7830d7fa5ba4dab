"""The jobs on Ray: the only package that imports ray."""

import os

# read when ray is imported or started; a user's own setting wins
_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a worker's end is seen by this poll
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the new behaviour; says a FutureWarning otherwise
    "RAY_DEDUP_LOGS_SKIP_REGEX": "worker processes have been started on node",  # which trials side by side do need
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of what a failed call would have returned besides; the call's own is raised
    "RAY_USAGE_STATS_ENABLED": "0",  # nobody is told what runs here
}
for _key, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_key, _value)
