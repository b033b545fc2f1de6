"""Loss terms: functions of columns on the token axis; the terms of an algorithm add up."""
