"""Experiments with inter-frame computation reuse on Ray: data, stages, tasks, tracking and plots."""
