"""What ours is compared with: published rules, written from their papers and code, asked as ours is."""
