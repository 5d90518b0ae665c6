"""What a user may ask for: builder.yaml."""
