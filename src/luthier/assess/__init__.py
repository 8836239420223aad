"""Graded judgement: targets, scores, calibration. numpy and scipy only."""
