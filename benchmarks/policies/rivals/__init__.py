"""What ours is compared with: published rules, written from their papers and code, in the leader's seat."""
