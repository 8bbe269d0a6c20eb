"""Keys of a trial's reports and of its Tune config."""

METRIC_KEY = "eval_loss"
STEP_KEY = "step"
PROGRESS_KEY = "progress"
"""Share of the trial that is done, in [0, 1]; None or missing: it is not known."""
# The only key of a trial's Tune config. Tune would interpret the dots of config paths as keys.
OVERRIDES_KEY = "overrides"
FINISHED_KEY = "finished"
"""True in the last report of a trial that reached its end."""
FAILURE_KEY = "failure"
"""Reason in the last report of a trial that cannot go on."""
