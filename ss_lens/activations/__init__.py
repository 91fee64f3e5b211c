"""What a model computed: captured, stored, and identified by all that it depends on."""
