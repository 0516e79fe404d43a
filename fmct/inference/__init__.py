"""A published encoder or model applied to scans: features, sliding windows, decisions, masks on the original grid."""
