"""Models' answers compared by a judge: preferences with length control, five grades with Bradley-Terry, scores of two
turns; and how far the judge can be trusted."""
