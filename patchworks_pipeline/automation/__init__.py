"""What starts runs, or tells people, without being asked: sensors, schedules, alerts, retention."""
