"""From pictures to proposals: batched inference, result files and drawings."""
