"""How people are notified. ``health.alert_message`` writes the messages."""
