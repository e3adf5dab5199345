"""By how much a guard makes copying dearer: attacks on guarded models, carried out.

``occlude evaluate guard`` runs this. It trains victims here, serves them itself, and has them
attacked here through the encrypted channel, as strangers would.
"""
