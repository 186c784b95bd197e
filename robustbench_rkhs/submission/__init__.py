"""Submissions from third parties: checking, evaluation and the leaderboard gate."""
