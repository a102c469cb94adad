"""What operators ask of all nodes: who is on, who is slow, who has to go, and which node lets its clients go."""
