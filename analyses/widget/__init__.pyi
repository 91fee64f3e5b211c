from .dial import LiveDial as LiveDial, StoredDial as StoredDial
