"""What a run shows of itself: TensorBoard curves, previews while it trains, a report at the end."""
