"""Load for a running node, over its public interface only."""
